//! SIGINT and SIGTERM: the first ends the run in good order, the second ends it at once.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::error::CliError;

/// The flag, once it was requested. There is one for the whole command, so that a signal between two of its steps ends the next one.
static INTERRUPT: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Lets both signals set the returned flag; a second signal then has its usual effect.
pub(crate) fn interrupt_flag() -> Result<Arc<AtomicBool>, CliError> {
    if let Some(interrupt) = INTERRUPT.get() {
        return Ok(Arc::clone(interrupt));
    }
    let interrupt = Arc::new(AtomicBool::new(false));
    let failed = |error| CliError::Failed(format!("Signal handlers cannot be installed: {error}"));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset and sets it, the second finds it set.
        flag::register_conditional_default(signal, Arc::clone(&interrupt)).map_err(failed)?;
        flag::register(signal, Arc::clone(&interrupt)).map_err(failed)?;
    }
    Ok(Arc::clone(INTERRUPT.get_or_init(|| interrupt)))
}
