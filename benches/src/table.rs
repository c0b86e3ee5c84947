//! The medians of several rounds as a table.

use std::io::Read;

use anyhow::Result;

struct Row {
    what: String,
    figure: String,
    unit: String,
    values: Vec<f64>,
}

pub fn run() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    print!("{}", render(&collect(&text)));
    Ok(())
}

fn collect(text: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [what, figure, unit, value] = fields.as_slice() else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        match rows.iter_mut().find(|row| row.what == *what && row.figure == *figure) {
            Some(row) => row.values.push(value),
            None => rows.push(Row {
                what: (*what).into(),
                figure: (*figure).into(),
                unit: (*unit).into(),
                values: vec![value],
            }),
        }
    }
    rows.iter_mut().for_each(|row| row.values.sort_by(f64::total_cmp));
    rows
}

fn render(rows: &[Row]) -> String {
    let mut out =
        String::from("| measured | median | least | most | rounds |\n|---|---:|---:|---:|---:|\n");
    for Row { what, figure, unit, values } in rows {
        let median = values[values.len() / 2];
        let (least, most) = (values[0], values[values.len() - 1]);
        let rounds = values.len();
        out += &format!("| {what}: {figure} ({unit}) | {median} | {least} | {most} | {rounds} |\n");
    }
    out
}
