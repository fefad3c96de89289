//! Tables as all commands show them.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

use super::error::CliError;
use super::output::Output;

/// Makes a table with a heading; the columns at `right` are aligned to the right.
pub(crate) fn new(output: &Output, names: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let arrangement =
        if output.stdout_is_terminal() { ContentArrangement::Dynamic } else { ContentArrangement::Disabled };
    table.set_content_arrangement(arrangement);
    if output.colour() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(names.iter().enumerate().map(|(at, name)| match right.contains(&at) {
        true => self::right((*name).to_owned()),
        false => Cell::new(name),
    }));
    table
}

/// Makes a cell that is aligned to the right.
pub(crate) fn right(content: String) -> Cell {
    Cell::new(content).set_alignment(CellAlignment::Right)
}

/// Writes a table to stdout.
pub(crate) fn write(output: &Output, table: &mut Table) -> Result<(), CliError> {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for line in table.lines() {
        output.line(line.trim_end())?;
    }
    Ok(())
}
