//! The one place where a panic of redb becomes an error.
//!
//! redb trusts its pages and panics on some that are damaged. A panic leaves its locks poisoned and whatever it was doing undone, so that further calls
//! panic as well, and dropping what is open may; nothing of it outlives the process, and the file is as it was.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::CatalogError;

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether a panic of this thread would become a [`CatalogError`] now, so that nobody needs to be told of it.
pub fn is_guarded() -> bool {
    IS_GUARDED.get()
}

/// Calls redb. A panic is a damaged catalogue.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, CatalogError>) -> Result<T, CatalogError> {
    let outer = IS_GUARDED.replace(true);
    // What a panic leaves half done belongs to redb, which checks its own locks.
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(outer);
    result.unwrap_or_else(|panic| Err(CatalogError::Broken { reason: text(panic.as_ref()).to_owned() }))
}

/// Returns the first line of what a panic said.
fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.and_then(|text| text.lines().next()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_damage_and_told_by_its_first_line() {
        let failed: Result<(), CatalogError> = guarded(|| {
            assert!(is_guarded());
            panic!("a page of kind {}\nand more", 7)
        });
        let error = failed.unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("a page of kind 7)"), "{error}");
        assert!(!is_guarded());
        assert_eq!(guarded(|| Ok(guarded(|| Ok(1))? + 1)).unwrap(), 2);
    }
}
