//! What happened, folded into one number.
//!
//! The trace belongs to the thread that runs a seed, so that any part of a simulation can add to it and so that it survives
//! a panic. Two runs of one seed are the same if and only if their digests are (up to hash collisions).

use basalt_clock::Instant;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::{self, Write as _};

/// Lines of the trace that are kept for a report; older ones only count in the digest.
pub const TAIL_LINES: usize = 60;

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// The number that stands for everything that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u64);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What is left of a trace when a run ends.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The digest of all lines.
    pub digest: Digest,
    /// How many lines there were.
    pub lines: u64,
    /// The last of them, oldest first.
    pub tail: Vec<String>,
}

#[derive(Debug)]
struct Recorder {
    digest: u64,
    lines: u64,
    now: Instant,
    tail: VecDeque<String>,
    echo: bool,
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Starts a new trace on this thread, forgetting an earlier one. With `echo`, every line also goes to standard error.
pub fn begin(echo: bool) {
    let recorder = Recorder {
        digest: FNV_OFFSET,
        lines: 0,
        now: Instant::ORIGIN,
        tail: VecDeque::with_capacity(TAIL_LINES),
        echo,
    };
    RECORDER.with(|slot| *slot.borrow_mut() = Some(recorder));
}

/// Tells the trace what time it is; lines carry it.
pub fn set_now(now: Instant) {
    RECORDER.with(|slot| {
        if let Some(recorder) = slot.borrow_mut().as_mut() {
            recorder.now = now;
        }
    });
}

/// Adds one line. Does nothing on a thread without a trace. Use it through [`event!`](crate::event).
pub fn add(line: fmt::Arguments<'_>) {
    RECORDER.with(|slot| {
        let mut slot = slot.borrow_mut();
        let Some(recorder) = slot.as_mut() else { return };
        let mut text = match recorder.tail.len() {
            TAIL_LINES => recorder.tail.pop_front().unwrap_or_default(),
            _ => String::new(),
        };
        text.clear();
        let nanos = recorder.now.as_nanos();
        // Writing to a string cannot fail.
        let written = write!(text, "{:>6}.{:09} {line}", nanos / 1_000_000_000, nanos % 1_000_000_000);
        debug_assert!(written.is_ok(), "a Display implementation failed");
        for byte in text.bytes() {
            recorder.digest = (recorder.digest ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
        recorder.digest = (recorder.digest ^ u64::from(b'\n')).wrapping_mul(FNV_PRIME);
        recorder.lines += 1;
        if recorder.echo {
            eprintln!("{text}");
        }
        recorder.tail.push_back(text);
    });
}

/// Ends this thread's trace and returns what is left of it; an empty one if none was begun.
pub fn finish() -> Finished {
    RECORDER.with(|slot| match slot.borrow_mut().take() {
        Some(recorder) => {
            Finished { digest: Digest(recorder.digest), lines: recorder.lines, tail: recorder.tail.into() }
        }
        None => Finished { digest: Digest(FNV_OFFSET), lines: 0, tail: Vec::new() },
    })
}

/// Adds a line to this thread's trace, in the manner of `println!`.
#[macro_export]
macro_rules! event {
    ($($arguments:tt)*) => {
        $crate::trace::add(format_args!($($arguments)*))
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(lines: &[&str]) -> Finished {
        begin(false);
        for line in lines {
            event!("{line}");
        }
        finish()
    }

    #[test]
    fn same_lines_same_digest_and_order_matters() {
        assert_eq!(digest_of(&["a", "b"]).digest, digest_of(&["a", "b"]).digest);
        assert_ne!(digest_of(&["a", "b"]).digest, digest_of(&["b", "a"]).digest);
        assert_ne!(digest_of(&["ab"]).digest, digest_of(&["a", "b"]).digest);
    }

    #[test]
    fn time_is_part_of_the_digest() {
        begin(false);
        set_now(Instant::from_nanos(1));
        event!("a");
        assert_ne!(finish().digest, digest_of(&["a"]).digest);
    }

    #[test]
    fn the_tail_is_bounded_but_every_line_counts() {
        let lines: Vec<String> = (0..TAIL_LINES + 5).map(|line| line.to_string()).collect();
        let all: Vec<&str> = lines.iter().map(String::as_str).collect();
        let finished = digest_of(&all);
        assert_eq!(finished.tail.len(), TAIL_LINES);
        assert!(finished.tail[0].ends_with(" 5"), "{:?}", finished.tail[0]);
        assert_ne!(finished.digest, digest_of(&all[1..]).digest);
    }
}
