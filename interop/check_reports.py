#!/usr/bin/env python3
"""The auditor's reports, judged by those who read them: JSON and SARIF by their schemas, the page by a browser.

usage: check_reports.py BINARY [--sarif-schema FILE] [--screenshot FILE]

The checkpoint audited is made here: an FP8 model with a weight whose name is markup, without its scale. JSON is held against
specs/cli/audit.schema.json, JUnit against an XML parser. SARIF is held against the schema of the standard, which is not ours to keep
here: it is sarif-2.1/schema/sarif-schema-2.1.0.json of oasis-tcs/sarif-spec; without --sarif-schema that step says that it was skipped.
The page is opened in a headless Chromium (`chromium`, `chromium-browser` or `google-chrome`), which presses its buttons and types
into its search; without a browser that step says so too. jsonschema is needed, nothing else.
"""

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path

import jsonschema

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "<img src=x onerror=\"window.hostile=1\">"

# Runs before the page's own script: errors, and whatever a hostile name would do, are noted.
BEFORE = """<script>window.errors = []; window.addEventListener("error", function (e) { window.errors.push(String(e.message)); });
window.addEventListener("securitypolicyviolation", function (e) { window.errors.push("policy: " + e.violatedDirective); });
["error", "warn"].forEach(function (n) { var old = console[n]; console[n] = function () { window.errors.push(n); old.apply(console, arguments); }; });
</script>"""

# Runs after it: what a reader would do.
AFTER = """<script>(function () {
  var result = {}, shown = function () { return document.getElementById("shown").textContent; };
  var press = function (severity) { document.querySelector("button[data-severity=" + severity + "]").click(); };
  result.all = shown();
  press("note"); result.without_notes = shown(); press("note");
  press("error"); press("warning"); press("note"); result.nothing = shown(); press("error"); press("warning"); press("note");
  var search = document.getElementById("search");
  search.value = "SC001"; search.dispatchEvent(new Event("input")); result.searched = shown();
  search.value = ""; search.dispatchEvent(new Event("input"));
  var family = document.getElementById("family");
  family.value = "SC"; family.dispatchEvent(new Event("change")); result.family = shown();
  family.value = ""; family.dispatchEvent(new Event("change"));
  document.querySelectorAll("details.rule").forEach(function (d) { d.open = true; d.dispatchEvent(new Event("toggle")); });
  document.querySelectorAll("#map button:not([disabled])").forEach(function (b) { b.click(); });
  document.getElementById("theme").click(); result.theme = document.documentElement.getAttribute("data-theme");
  document.getElementById("theme").click(); result.other_theme = document.documentElement.getAttribute("data-theme");
  result.images = document.querySelectorAll("img").length;
  result.named = document.getElementById("page").textContent.indexOf("onerror=") >= 0;
  result.charts = document.querySelectorAll("svg rect").length;
  result.hostile = Boolean(window.hostile);
  result.errors = window.errors;
  var out = document.createElement("pre"); out.id = "result"; out.textContent = JSON.stringify(result); document.body.append(out);
})();</script>"""


def safetensors(path, tensors):
    header, data = {}, b""
    for name, dtype, shape, content in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def checkpoint(folder):
    """Two layers, all weights FP8 in blocks, and the hostile one without its scale."""
    folder.mkdir()
    tensors = []
    for layer in range(2):
        for at, name in enumerate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                   "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]):
            module = "model.layers.%d.%s" % (layer, name)
            codes = bytes((i * 37 + at) % 120 for i in range(64 * 64))
            tensors.append((module + ".weight", "F8_E4M3", [64, 64], codes))
            tensors.append((module + ".weight_scale_inv", "F32", [1, 1], struct.pack("<f", 0.01 * (at + 1))))
    tensors.append(("model.layers.0.mlp.%s.weight" % HOSTILE, "F8_E4M3", [64, 64], bytes(64 * 64)))
    safetensors(folder / "model.safetensors", tensors)
    config = {"model_type": "llama", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (folder / "config.json").write_text(json.dumps(config))


def audit(binary, folder, *options):
    command = [str(binary), "audit", str(folder), "--depth", "full", "--fail-on", "never", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def valid(name, record, schema):
    errors = list(jsonschema.validators.validator_for(schema)(schema).iter_errors(record))
    if errors:
        sys.exit("%s: %s" % (name, "; ".join(error.message[:200] for error in errors[:5])))
    print("%s: valid" % name)


def browser():
    return next((path for path in map(shutil.which, ["chromium", "chromium-browser", "google-chrome"]) if path), None)


def opened(page, folder, *options):
    """What Chromium has after it ran the page's scripts."""
    command = [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000",
               "--user-data-dir=" + str(folder / "profile"), *options, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def look(html, folder, screenshot):
    page = folder / "page.html"
    head, body = html.replace("<title>", BEFORE + "<title>", 1), "</body>"
    page.write_text(head.replace(body, AFTER + body, 1))
    dom = opened(page, folder, "--dump-dom")
    text = dom.split('<pre id="result">', 1)[1].split("</pre>", 1)[0]
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        text = text.replace(entity, character)
    result = json.loads(text)
    number = lambda shown: int(shown.split(" of ")[0].replace(",", ""))
    checks = {
        "no console errors": result["errors"] == [],
        "a name stays text": result["images"] == 0 and not result["hostile"] and result["named"],
        "findings are shown": number(result["all"]) > 0,
        "severities filter": number(result["nothing"]) == 0 and number(result["without_notes"]) <= number(result["all"]),
        "the search filters": 0 < number(result["searched"]) < number(result["all"]),
        "families filter": 0 < number(result["family"]) < number(result["all"]),
        "histograms are drawn": result["charts"] > 16,
        "light and dark": {result["theme"], result["other_theme"]} == {"light", "dark"},
    }
    for name, passed in checks.items():
        print("page: %s: %s" % (name, "yes" if passed else "NO"))
    if not all(checks.values()):
        sys.exit("page: %s" % result)
    if screenshot:
        plain = folder / "plain.html"
        plain.write_text(html)
        opened(plain, folder, "--window-size=1280,1750", "--screenshot=" + str(Path(screenshot).resolve()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("--sarif-schema", type=Path)
    parser.add_argument("--screenshot")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        checkpoint(folder / "model")
        wanted = ["--runtime", "vllm,transformers,llama.cpp", "--tp", "2,8"]
        binary, model = options.binary.resolve(), folder / "model"
        record = json.loads(audit(binary, model, "--format", "json", *wanted))
        valid("audit.schema.json", record, json.loads((ROOT / "specs/cli/audit.schema.json").read_text()))
        xml.etree.ElementTree.fromstring(audit(binary, model, "--format", "junit"))
        print("junit: parsed")
        sarif = json.loads(audit(binary, model, "--format", "sarif"))
        if options.sarif_schema:
            valid("sarif-schema-2.1.0.json", sarif, json.loads(options.sarif_schema.read_text()))
        else:
            print("sarif-schema-2.1.0.json: NOT CHECKED, no --sarif-schema")
        if browser():
            look(audit(binary, model, "--format", "html", *wanted), folder, options.screenshot)
        else:
            print("page: NOT LOOKED AT, there is no Chromium here")


if __name__ == "__main__":
    main()
