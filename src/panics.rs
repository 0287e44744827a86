//! Libraries that panic over damaged input.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is expected, and nothing is said of it.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// What `work` gives; `None` if it panicked, of which nothing is printed. What it was changing must not be used then.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !EXPECTED.get() {
                usual(panic);
            }
        }));
    });
    let outer = EXPECTED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(outer);
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_nothing() {
        assert_eq!(caught(|| 3), Some(3));
        assert_eq!(caught(|| caught(|| -> u8 { panic!("damaged") }).is_none()), Some(true));
        assert!(!EXPECTED.get());
    }
}
