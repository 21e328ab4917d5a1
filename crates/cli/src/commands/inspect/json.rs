//! `inspect --json` (specs/cli/inspect.schema.json).

use safequant::container::CheckpointKind;
use serde_json::{Value, json};

use super::report::{Report, Sum};
use crate::args::InspectArgs;
use crate::collapse::collapse;
use crate::exit::Failure;
use crate::output::{self, SCHEMA_VERSION};

/// The report as data; figures that need bound conventions are `null` where those could not be bound.
pub(super) fn record(args: &InspectArgs, report: &Report, failure: Option<&Failure>) -> Value {
    let kind = match report.kind {
        CheckpointKind::File => "file",
        CheckpointKind::Directory => "directory",
        CheckpointKind::Index => "index",
    };
    let mut record = json!({
        "schema_version": SCHEMA_VERSION,
        "command": "inspect",
        "source": args.source.to_string_lossy(),
        "kind": kind,
        "filter": args.filter,
        "files": files(report),
        "conventions": conventions(report),
        "totals": totals(report),
        "dtypes": dtypes(report),
        "schemes": schemes(report),
        "roles": roles(report),
        "groups": groups(report),
        "orphans": report.orphans,
        "error": failure.map(output::error_record),
    });
    if args.tensors {
        record["tensors"] = tensors(report);
    }
    record
}

fn files(report: &Report) -> Value {
    let one = |(name, bytes, tensors): &(String, u64, usize)| json!({ "name": name, "bytes": bytes, "tensors": tensors });
    report.files.iter().map(one).collect()
}

fn conventions(report: &Report) -> Value {
    let one = |(id, evidence): &(&str, Vec<String>)| json!({ "id": id, "evidence": evidence });
    report.conventions.iter().map(one).collect()
}

fn totals(report: &Report) -> Value {
    let (stored, total, quantized) = (report.stored(), report.total(), report.quantized());
    let known = |value: Value| if report.is_bound { value } else { Value::Null };
    json!({
        "tensors": stored.tensors,
        "stored_elements": stored.n_elements,
        "bytes": stored.len_bytes,
        "parameters": known(total.parameters.into()),
        "bits_per_weight": known(bits(total)),
        "quantized": known(sum(quantized)),
    })
}

fn bits(sum: Sum) -> Value {
    output::bits_per_weight(sum.len_bytes, sum.parameters).into()
}

fn sum(sum: Sum) -> Value {
    json!({ "count": sum.count, "parameters": sum.parameters, "bytes": sum.len_bytes, "bits_per_weight": bits(sum) })
}

/// The members of `sum` after those of `head`.
fn with(mut head: Value, of: Sum) -> Value {
    output::extend(&mut head, sum(of));
    head
}

fn dtypes(report: &Report) -> Value {
    let sums = report.dtypes().into_iter();
    sums.map(|(dtype, sum)| {
        json!({ "dtype": dtype.name(), "tensors": sum.tensors, "elements": sum.n_elements, "bytes": sum.len_bytes })
    })
    .collect()
}

fn schemes(report: &Report) -> Value {
    let sums = report.schemes().into_iter();
    sums.map(|((convention, scheme), sum)| {
        with(json!({ "convention": convention, "scheme": scheme }), sum)
    })
    .collect()
}

fn roles(report: &Report) -> Value {
    report
        .places()
        .into_iter()
        .map(|(place, sum)| with(json!({ "role": place.word() }), sum))
        .collect()
}

fn groups(report: &Report) -> Value {
    let keys = report
        .entries
        .iter()
        .map(|e| (e.name.as_str(), (e.convention, &e.scheme, &e.shape)));
    let one = |group: crate::collapse::Group<(Option<&'static str>, &String, &Vec<u64>)>| {
        let members = || group.members.iter().map(|&i| &report.entries[i]);
        json!({
            "name": group.name,
            "count": group.members.len(),
            "convention": group.key.0,
            "scheme": group.key.1,
            "shape": group.key.2,
            "parameters": members().map(|entry| entry.parameters).fold(0, u64::saturating_add),
            "bytes": members().map(|entry| entry.len_bytes).fold(0, u64::saturating_add),
        })
    };
    collapse(keys).into_iter().map(one).collect()
}

fn tensors(report: &Report) -> Value {
    let one = |tensor: &super::report::Stored| {
        json!({
            "name": tensor.name,
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape,
            "bytes": tensor.len_bytes,
            "file": tensor.file,
            "module": tensor.part_of.as_ref().map(|(module, _)| module),
            "part": tensor.part_of.as_ref().map(|(_, role)| role.name()),
        })
    };
    report.tensors.iter().map(one).collect()
}
