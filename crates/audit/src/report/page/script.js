"use strict";
(function () {
  var data = JSON.parse(document.getElementById("data").textContent);
  var page = document.getElementById("page");
  var SEVERITIES = ["error", "warning", "note"];
  var PARTS = ["q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "router", "embedding", "lm_head", "other"];
  var COLORS = ["#3b6fe0", "#e08a3b", "#2f9e6e", "#a05bd0", "#d0495b", "#2a9fb5", "#9a8a3a", "#7a869a"];

  // Elements are made here and nowhere else; children that are no elements become text.
  function element(tag, attributes, children) {
    var made = document.createElement(tag);
    for (var key in attributes || {}) {
      if (key === "on") { for (var event in attributes.on) { made.addEventListener(event, attributes.on[event]); } }
      else if (key === "style") { for (var property in attributes.style) { made.style.setProperty(property, attributes.style[property]); } }
      else if (attributes[key] !== null && attributes[key] !== undefined) { made.setAttribute(key, attributes[key]); }
    }
    [].concat(children === undefined ? [] : children).forEach(function (child) {
      if (child !== null && child !== undefined) { made.append(child instanceof Node ? child : visible(String(child))); }
    });
    return made;
  }

  // Control and bidirectional characters are shown, not obeyed.
  function visible(text) {
    return text.replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, function (c) {
      return "\\u{" + c.charCodeAt(0).toString(16) + "}";
    });
  }

  function count(n) { return n.toLocaleString("en-US"); }
  function bytes(n) {
    var units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"], at = 0;
    while (n >= 1023.95 && at + 1 < units.length) { n /= 1024; at += 1; }
    return (at === 0 ? n : n.toFixed(1)) + " " + units[at];
  }
  function plural(n, word) { return count(n) + " " + word + (n === 1 ? "" : "s"); }
  function bits(module) { return module.weights > 0 ? module.bytes * 8 / module.weights : null; }

  // ---------------------------------------------------------------- head
  function head() {
    var summary = data.summary;
    var next = { auto: "dark", dark: "light", light: "auto" }, theme = "auto";
    var prefers = window.matchMedia("(prefers-color-scheme: dark)");
    var button = element("button", { id: "theme", on: { click: function () { theme = next[theme]; apply(); } } });
    function apply() {
      var dark = theme === "dark" || (theme === "auto" && prefers.matches);
      document.documentElement.setAttribute("data-theme", dark ? "dark" : "light");
      button.textContent = "Theme: " + theme;
    }
    prefers.addEventListener("change", apply);
    apply();
    page.append(element("header", {}, [
      element("div", {}, [element("h1", {}, data.source),
        element("p", {}, "safequant " + data.version + " audit, depth " + data.depth + ", " + plural(summary.rules_run, "rule") +
          (summary.rules_skipped.length ? ", " + summary.rules_skipped.length + " need more depth" : ""))]),
      button]));
    var kind = summary.errors || data.problems.length ? "error" : summary.warnings ? "warning" : "good";
    var words = { error: "This checkpoint is broken, or means something else than it says", warning: "Usable, with reservations", good: "No fault found" };
    var counts = [plural(summary.errors, "error"), plural(summary.warnings, "warning"), plural(summary.notes, "note")].join(", ") +
      (summary.known ? "; " + plural(summary.known, "finding") + " of the baseline not shown" : "");
    page.append(element("div", { "class": "verdict " + kind, id: "verdict" }, [
      element("span", { "class": "mark", "aria-hidden": "true" }, { error: "\u2715", warning: "!", good: "\u2713" }[kind]),
      element("div", {}, [words[kind], element("small", {}, counts)])]));
    var weights = 0, stored = 0;
    data.schemes.forEach(function (scheme) { weights += scheme.weights; stored += scheme.bytes; });
    var tiles = [
      [bytes(data.bytes), plural(summary.files, "file")],
      [count(weights), "weights"],
      [weights ? (stored * 8 / weights).toFixed(2) : "-", "bits per weight"],
      [count(summary.quantized_modules), "quantized modules"],
      [summary.conventions.join(", ") || "dense", "convention"]
    ];
    page.append(element("div", { "class": "tiles" }, tiles.map(function (tile) {
      return element("div", { "class": "tile" }, [element("b", {}, tile[0]), element("span", {}, tile[1])]);
    })));
    if (data.problems.length) {
      page.append(element("section", { id: "problems" }, [element("h2", {}, "What could not be audited")].concat(data.problems.map(function (problem) {
        return element("div", { "class": "finding" }, [element("span", { "class": "badge error" }, problem.code), element("p", {}, problem.message)]);
      }))));
    }
  }

  // ---------------------------------------------------------------- findings
  function findings() {
    if (!data.findings.length) { return; }
    var wanted = { error: true, warning: true, note: true }, needle = "", family = "";
    var list = element("div", { id: "findings" }), shown = element("span", { "class": "count", id: "shown" });
    var buttons = SEVERITIES.map(function (severity) {
      return element("button", { "aria-pressed": "true", "data-severity": severity, on: { click: function (event) {
        wanted[severity] = !wanted[severity];
        event.currentTarget.setAttribute("aria-pressed", String(wanted[severity]));
        draw();
      } } }, severity + "s");
    });
    var families = Array.from(new Set(data.findings.map(function (f) { return f.rule.slice(0, 2); }))).sort();
    var select = element("select", { id: "family", "aria-label": "family of rules", on: { change: function (event) { family = event.target.value; draw(); } } },
      [element("option", { value: "" }, "all families")].concat(families.map(function (f) { return element("option", { value: f }, f); })));
    var search = element("input", { type: "search", id: "search", placeholder: "file, module, tensor, rule or text", "aria-label": "filter findings",
      on: { input: function (event) { needle = event.target.value.toLowerCase(); draw(); } } });

    function matches(finding) {
      if (!wanted[finding.severity] || (family && finding.rule.slice(0, 2) !== family)) { return false; }
      var text = [finding.rule, finding.name, finding.file, finding.module, finding.tensor, finding.message, finding.help].join(" ").toLowerCase();
      return !needle || text.indexOf(needle) >= 0;
    }
    function one(finding) {
      var place = [finding.file, finding.module, finding.tensor].filter(Boolean).join("  \u203a  ");
      if (finding.entry) { place += " [" + finding.entry.join(", ") + "]"; }
      var pair = [];
      [["expected", finding.expected], ["found", finding.found], ["what to do", finding.help]].forEach(function (row) {
        if (row[1]) { pair.push(element("dt", {}, row[0]), element("dd", {}, row[1])); }
      });
      return element("div", { "class": "finding" }, [element("p", { "class": "place" }, place || data.source), element("p", {}, finding.message),
        pair.length ? element("dl", { "class": "pair" }, pair) : null]);
    }
    function draw() {
      var groups = new Map(), total = 0, open = new Set();
      list.querySelectorAll("details[open]").forEach(function (group) { open.add(group.dataset.rule); });
      data.findings.forEach(function (finding) {
        if (!matches(finding)) { return; }
        total += 1;
        var key = finding.rule + " " + finding.severity;
        if (!groups.has(key)) { groups.set(key, []); }
        groups.get(key).push(finding);
      });
      var drawn = [];
      groups.forEach(function (group, key) {
        var first = group[0], rule = data.rules[first.rule] || { name: "", summary: "", doc: "" };
        var body = element("div", { "class": "body" });
        function fill() {
          if (body.childNodes.length) { return; }
          group.slice(0, 300).forEach(function (finding) { body.append(one(finding)); });
          if (group.length > 300) { body.append(element("p", { "class": "count" }, "and " + count(group.length - 300) + " more")); }
          body.append(element("pre", { "class": "doc" }, rule.doc));
        }
        var details = element("details", { "class": "rule", "data-rule": key, on: { toggle: fill } }, [
          element("summary", {}, [element("span", { "class": "badge " + first.severity }, first.severity), element("b", {}, first.rule),
            element("span", { "class": "grow" }, rule.summary || first.message), element("span", { "class": "count" }, count(group.length))]), body]);
        if (open.has(key) || groups.size <= 2) { details.open = true; fill(); }
        drawn.push(details);
      });
      list.replaceChildren.apply(list, drawn);
      shown.textContent = count(total) + " of " + count(data.findings.length);
    }
    page.append(element("section", {}, [element("h2", {}, "Findings"), element("div", { "class": "bar" }, buttons.concat([select, search, shown])), list,
      data.findings_left_out ? element("p", { "class": "count" }, count(data.findings_left_out) + " more findings are not in this page; --format json has all") : null]));
    draw();
  }

  // ---------------------------------------------------------------- map and detail
  // From poor to good, and from few to many; readable with black text in both themes.
  var QUALITY = [[232, 96, 92], [244, 178, 92], [242, 224, 128], [150, 208, 140], [92, 178, 156]];
  var AMOUNT = [[214, 228, 250], [152, 188, 240], [98, 148, 226]];
  function color(stops, share) {
    var at = Math.max(0, Math.min(1, share)) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2), part = at - low;
    return "rgb(" + stops[low].map(function (value, i) { return Math.round(value + (stops[low + 1][i] - value) * part); }).join(",") + ")";
  }
  var detail = element("section", { id: "detail" });
  var chosen = null;

  function map() {
    if (!data.modules.length) { return; }
    var measure = data.has_reference ? "sqnr" : "bits", lossy = data.has_reference;
    function value(module) { return measure === "bits" ? bits(module) : module.loss ? (module.loss.sqnr_db === null ? 140 : module.loss.sqnr_db) : null; }
    var holder = element("div", { "class": "scroll", id: "map" });
    var legend = element("div", { "class": "legend" });
    function column(module) { return (module.expert === null ? "" : "experts ") + module.part; }
    var columns = [];
    PARTS.concat(PARTS.map(function (part) { return "experts " + part; })).forEach(function (name) {
      if (data.modules.some(function (module) { return column(module) === name; })) { columns.push(name); }
    });
    var rows = new Map();
    data.modules.forEach(function (module) {
      var row = module.layer === null ? -1 : module.layer;
      if (!rows.has(row)) { rows.set(row, {}); }
      var cells = rows.get(row), key = column(module);
      (cells[key] = cells[key] || []).push(module);
    });
    var order = Array.from(rows.keys()).sort(function (a, b) { return a - b; });
    function worst(modules) {
      return modules.reduce(function (a, b) { var x = value(a), y = value(b); return y !== null && (x === null || y < x) ? b : a; });
    }
    function draw() {
      var low = Infinity, high = -Infinity;
      data.modules.forEach(function (module) { var v = value(module); if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); } });
      var stops = measure === "bits" ? AMOUNT : QUALITY;
      // Differences too small to mean anything get one color.
      var spread = high - low > 0.03 * Math.abs(high) ? high - low : 0;
      function cell(modules) {
        if (!modules) { return element("td", {}, element("button", { "class": "hole", disabled: "", "aria-label": "none" })); }
        var module = worst(modules), v = value(module);
        var gravest = SEVERITIES.find(function (severity) { return modules.some(function (m) { return m.severity === severity; }); });
        var title = module.module + (modules.length > 1 ? " (the lowest of " + modules.length + ")" : "") + "\n" + module.scheme;
        return element("td", {}, element("button", { title: visible(title), "aria-pressed": String(module === chosen),
          style: { background: v === null ? "var(--line)" : color(stops, spread ? (v - low) / spread : 0.5) },
          on: { click: function () { chosen = module; show(module); draw(); } } },
          [v === null ? "-" : v.toFixed(v < 100 ? 2 : 0), gravest && gravest !== "note" ? element("span", { "class": "dot" }, gravest === "error" ? "\u2715" : "!") : null]));
      }
      var head = element("tr", {}, [element("th", {})].concat(columns.map(function (name) { return element("th", { scope: "col" }, name); })));
      var body = order.map(function (row) {
        return element("tr", {}, [element("th", { scope: "row" }, row < 0 ? "outside" : "layer " + row)].concat(columns.map(function (name) { return cell(rows.get(row)[name]); })));
      });
      holder.replaceChildren(element("table", { "class": "map" }, [element("thead", {}, head), element("tbody", {}, body)]));
      var ends = measure === "bits" ? [low.toFixed(2) + " bits per weight", high.toFixed(2)] : [low.toFixed(1) + " dB", high >= 140 ? "lossless" : high.toFixed(1) + " dB"];
      legend.replaceChildren(element("span", {}, ends[0]), element("i", { style: { background: "linear-gradient(90deg," + [0, .25, .5, .75, 1].map(function (share) { return color(stops, spread ? share : 0.5); }).join(",") + ")" } }), element("span", {}, ends[1]));
    }
    var choices = [["sqnr", "signal to noise"], ["bits", "bits per weight"]].filter(function (choice) { return lossy || choice[0] === "bits"; });
    var buttons = choices.map(function (choice) {
      return element("button", { "aria-pressed": String(choice[0] === measure), on: { click: function (event) {
        measure = choice[0];
        buttons.forEach(function (button) { button.setAttribute("aria-pressed", String(button === event.currentTarget)); });
        draw();
      } } }, choice[1]);
    });
    page.append(element("section", {}, [element("h2", {}, "Layers and parts"), buttons.length > 1 ? element("div", { "class": "bar" }, buttons) : null, holder, legend]));
    page.append(detail);
    chosen = data.modules[0];
    show(chosen);
    draw();
  }

  function chart(title, points, label) {
    var width = 460, height = 150, left = 6, bottom = 18, top = 6;
    var first = points[0][0], last = points[points.length - 1][0], most = Math.max.apply(null, points.map(function (p) { return p[1]; }));
    var step = (width - 2 * left) / (last - first + 1);
    var ns = "http://www.w3.org/2000/svg";
    function svg(tag, attributes, text) {
      var made = document.createElementNS(ns, tag);
      for (var key in attributes) { made.setAttribute(key, attributes[key]); }
      if (text !== undefined) { made.textContent = text; }
      return made;
    }
    var picture = svg("svg", { viewBox: "0 0 " + width + " " + height, width: "100%", role: "img", "aria-label": visible(title) });
    points.forEach(function (point) {
      var tall = Math.max(1, (height - bottom - top) * point[1] / most);
      var bar = svg("rect", { "class": "b", x: left + (point[0] - first) * step + step * .08, y: height - bottom - tall, width: Math.max(.6, step * .84), height: tall, rx: Math.min(2, step / 4) });
      bar.append(svg("title", {}, label(point[0]) + ": " + count(point[1])));
      picture.append(bar);
    });
    var every = Math.max(1, Math.ceil((last - first + 1) / 12));
    for (var at = first; at <= last; at += every) {
      picture.append(svg("text", { x: left + (at - first + .5) * step, y: height - 4, "text-anchor": "middle" }, label(at)));
    }
    return element("figure", {}, [element("figcaption", {}, title), picture]);
  }

  function show(module) {
    var facts = [["module", module.module], ["scheme", module.scheme], ["convention", module.convention], ["shape", module.shape.join(" \u00d7 ")],
      ["stored", bytes(module.bytes) + (bits(module) === null ? "" : ", " + bits(module).toFixed(3) + " bits per weight")]];
    if (module.scales && module.scales.n) {
      facts.push(["scales", count(module.scales.n) + ", magnitudes " + (module.scales.smallest === null ? "-" : module.scales.smallest.toExponential(2) + " to " + module.scales.largest.toExponential(2)) +
        (module.scales.zero ? ", " + count(module.scales.zero) + " zero" : "") + (module.scales.nan ? ", " + count(module.scales.nan) + " NaN" : "")]);
    }
    if (module.loss) {
      facts.push(["lost", "signal to noise " + (module.loss.sqnr_db === null ? "lossless" : module.loss.sqnr_db.toFixed(2) + " dB") + ", cosine " + module.loss.cosine.toFixed(6) +
        ", largest error " + module.loss.max_error.toExponential(2) + (module.loss.saturated_share === null ? "" : ", " + (100 * module.loss.saturated_share).toFixed(2) + " % of codes at the ends")]);
    }
    var charts = [];
    if (module.scales && module.scales.exponents.length) { charts.push(chart("scales by magnitude (powers of two)", module.scales.exponents, function (e) { return "2^" + e; })); }
    if (module.codes && module.codes.length) { charts.push(chart("how often each code occurs", module.codes, String)); }
    var missing = !module.scales ? (data.depth === "headers" ? "Histograms need --depth scales or full." : data.modules.length > data.max_histograms ? "Histograms of this module are not in this page." : null)
      : !module.codes && data.depth !== "full" ? "The histogram of codes needs --depth full." : null;
    var pairs = [];
    facts.forEach(function (fact) { pairs.push(element("dt", {}, fact[0]), element("dd", {}, fact[1])); });
    detail.replaceChildren(element("h2", {}, "Module"), element("dl", { "class": "pair" }, pairs), element("div", { "class": "charts" }, charts), missing ? element("p", { "class": "count" }, missing) : "");
  }

  // ---------------------------------------------------------------- sizes
  function sizes() {
    var total = 0;
    data.schemes.forEach(function (scheme) { total += scheme.bytes; });
    if (!total) { return; }
    function hue(at) { return COLORS[Math.min(at, COLORS.length - 1)]; }
    var stack = element("div", { "class": "stack" }, data.schemes.map(function (scheme, at) {
      return element("div", { title: visible(scheme.scheme), style: { flex: String(scheme.bytes / total), background: hue(at) } });
    }));
    var rows = data.schemes.map(function (scheme, at) {
      return element("tr", {}, [element("td", {}, [element("span", { "class": "swatch", style: { background: hue(at) } }), scheme.scheme, scheme.convention ? element("span", { "class": "count" }, "  " + scheme.convention) : null]),
        element("td", {}, count(scheme.count)), element("td", {}, count(scheme.weights)), element("td", {}, bytes(scheme.bytes)),
        element("td", {}, scheme.weights ? (scheme.bytes * 8 / scheme.weights).toFixed(2) : "-")]);
    });
    var head = element("tr", {}, ["scheme", "tensors", "weights", "size", "bits per weight"].map(function (name) { return element("th", {}, name); }));
    page.append(element("section", {}, [element("h2", {}, "Size by scheme"), stack, element("div", { "class": "scroll" }, element("table", { "class": "list" }, [element("thead", {}, head), element("tbody", {}, rows)]))]));
  }

  // ---------------------------------------------------------------- runtimes and ranks
  function answer(works) { return element("span", { "class": "badge " + (works ? "good" : "error") }, works ? "yes" : "no"); }
  function wanted() {
    if (data.runtimes.length) {
      var rows = [];
      data.runtimes.forEach(function (verdict) {
        var version = verdict.from ? verdict.from + (verdict.before ? " up to " + verdict.before : " on") : "";
        rows.push(element("tr", {}, [element("td", {}, verdict.profile || verdict.runtime), element("td", {}, version), element("td", {}, answer(verdict.loads)),
          element("td", { "class": "left" }, verdict.reasons.length ? verdict.reasons.map(function (reason) {
            return element("div", { "class": "finding" }, [element("p", {}, reason.message + (reason.count > 1 ? " (and " + (reason.count - 1) + " more)" : "")),
              reason.help ? element("p", { "class": "count" }, reason.help) : null, element("p", { "class": "place" }, reason.source)]);
          }) : "nothing against it")]));
      });
      var head = element("tr", {}, ["runtime", "version", "loads", "why"].map(function (name) { return element("th", {}, name); }));
      page.append(element("section", { id: "runtimes" }, [element("h2", {}, "Runtimes"), element("div", { "class": "scroll" }, element("table", { "class": "list" }, [element("thead", {}, head), element("tbody", {}, rows)]))]));
    }
    if (data.tensor_parallel) {
      var plans = data.tensor_parallel.degrees.map(function (plan) {
        return element("tr", {}, [element("td", {}, "TP " + plan.degree), element("td", {}, answer(plan.works)), element("td", {}, bytes(plan.rank_bytes)),
          element("td", { "class": "left" }, plan.obstacles.length ? plan.obstacles.map(function (obstacle) {
            return element("div", { "class": "finding" }, [element("p", {}, obstacle.message + (obstacle.count > 1 ? " (" + plural(obstacle.count, "module") + ")" : "")), element("p", { "class": "count" }, obstacle.fix)]);
          }) : "nothing in the way")]);
      });
      var top = element("tr", {}, ["degree", "works", "a rank holds", "why not"].map(function (name) { return element("th", {}, name); }));
      page.append(element("section", { id: "ranks" }, [element("h2", {}, "Tensor parallelism"), element("div", { "class": "scroll" }, element("table", { "class": "list" }, [element("thead", {}, top), element("tbody", {}, plans)]))]));
    }
  }

  head();
  findings();
  wanted();
  map();
  sizes();
})();
