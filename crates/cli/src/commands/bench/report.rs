//! What `bench` prints.

use std::io;

use serde_json::{Value, json};

use super::measure::Measurement;
use super::{Outputs, Place, Plan};
use crate::output::{self, Align, Output, SCHEMA_VERSION, Table, Text, counted, figure, len};

const GIB: f64 = 1_073_741_824.0;

/// A table for each place and number of threads.
pub(super) fn print(plan: &Plan, all: &[Measurement], output: Output) -> io::Result<()> {
    let mut head = Text::default();
    head.line(format_args!(
        "backend {}; GiB/s of bytes read plus bytes written (BF16), medians of {} rounds",
        plan.backend.name, plan.rounds
    ));
    output::data(head.as_str())?;
    for place in plan.places {
        for &threads in &plan.threads {
            let title = format!(
                "{}, {}",
                title(place, threads),
                counted(len(threads), "thread")
            );
            output::data(&format!("\n{}\n", output.heading(&title)))?;
            let of_it = |m: &&Measurement| m.place == place.name && m.threads == threads;
            output.table(&table(place, all.iter().filter(of_it)))?;
        }
    }
    Ok(())
}

fn title(place: &Place, threads: usize) -> String {
    format!(
        "{} ({} x {})",
        place.name,
        place.n_rows(threads),
        place.n_columns
    )
}

fn table<'m>(place: &Place, measurements: impl Iterator<Item = &'m Measurement>) -> Table {
    let mut head = vec![
        ("format", Align::Left),
        ("GiB/s", Align::Right),
        ("of the copy", Align::Right),
    ];
    match place.outputs {
        Outputs::Given => {}
        Outputs::GivenAndFresh => head.push(("into fresh memory", Align::Right)),
    }
    head.push(("times portable", Align::Right));
    let mut table = Table::new(&head);
    for m in measurements {
        let mut row = vec![
            m.format.to_owned(),
            figure(Some(m.rate / GIB)),
            figure(Some(m.rate / m.copy)),
        ];
        row.extend(m.fresh.map(|fresh| figure(Some(fresh / GIB))));
        row.push(format!("{:.1}", m.rate / m.portable));
        table.row(row);
    }
    table
}

/// `specs/cli/bench.schema.json`.
pub(super) fn record(plan: &Plan, all: &[Measurement]) -> Value {
    let measurements: Vec<Value> = all
        .iter()
        .map(|m| {
            json!({
                "format": m.format,
                "place": m.place,
                "threads": m.threads,
                "bytes_per_second": m.rate,
                "fresh_bytes_per_second": m.fresh,
                "copy_bytes_per_second": m.copy,
                "portable_bytes_per_second": m.portable,
            })
        })
        .collect();
    let places: Vec<Value> = plan
        .places
        .iter()
        .map(|place| {
            json!({ "name": place.name, "rows": place.n_rows(1), "columns": place.n_columns })
        })
        .collect();
    json!({
        "schema_version": SCHEMA_VERSION,
        "command": "bench",
        "backend": plan.backend.name,
        "output_dtype": "BF16",
        "rounds": plan.rounds,
        "places": places,
        "measurements": measurements,
    })
}
