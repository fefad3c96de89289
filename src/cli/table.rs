//! Tables as all commands show them.

use comfy_table::{CellAlignment, Color, ContentArrangement, presets};
use zmreplica::plain::escape_text;

use super::error::CliError;
use super::output::Output;

/// A cell; what it holds is escaped here, and shows itself only.
pub(crate) struct Cell(comfy_table::Cell);

impl Cell {
    /// Makes a cell.
    pub(crate) fn new(content: impl AsRef<str>) -> Cell {
        Cell(comfy_table::Cell::new(escape_text(content.as_ref())))
    }

    /// Colours it.
    pub(crate) fn fg(self, colour: Color) -> Cell {
        Cell(self.0.fg(colour))
    }
}

/// A table under way.
pub(crate) struct Table(comfy_table::Table);

impl Table {
    /// Adds a row.
    pub(crate) fn add_row(&mut self, cells: Vec<Cell>) {
        self.0.add_row(cells.into_iter().map(|cell| cell.0));
    }
}

/// Makes a table with a heading; the columns at `right` are aligned to the right.
pub(crate) fn new(output: &Output, names: &[&str], right: &[usize]) -> Table {
    let mut table = comfy_table::Table::new();
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
        true => self::right((*name).to_owned()).0,
        false => comfy_table::Cell::new(name),
    }));
    Table(table)
}

/// Makes a cell that is aligned to the right.
pub(crate) fn right(content: String) -> Cell {
    Cell(Cell::new(content).0.set_alignment(CellAlignment::Right))
}

/// Writes a table to stdout.
pub(crate) fn write(output: &Output, table: &mut Table) -> Result<(), CliError> {
    for column in table.0.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for line in table.0.lines() {
        output.table_line(line.trim_end())?;
    }
    Ok(())
}
