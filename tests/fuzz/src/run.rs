//! Running a target on many inputs.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, process, thread};

use anyhow::{Context, Result};

use crate::corpus::Corpus;
use crate::mutate::Mutator;
use crate::targets::Target;

/// What was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Inputs.
    pub cases: u64,
    /// Those of the corpus.
    pub kept: u64,
}

/// An input that a target does not stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The input.
    pub input: Vec<u8>,
    /// What the panic said.
    pub message: String,
}

/// An input that takes longer than this hangs. Far above what any takes, so that a slow machine finds nothing.
const HANG: Duration = Duration::from_secs(120);

thread_local! {
    /// What the last panic on this thread said.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics of inputs are told by who ran them; all others as always.
fn listen_to_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if SAID.with(|said| said.borrow().is_some()) {
                SAID.with(|said| *said.borrow_mut() = Some(info.to_string()));
            } else {
                default(info);
            }
        }));
    });
}

/// Runs one input; what it found.
pub fn one(target: &Target, input: &[u8]) -> Option<Finding> {
    listen_to_panics();
    SAID.with(|said| *said.borrow_mut() = Some(String::new()));
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let said = SAID.with(|said| said.borrow_mut().take());
    outcome.err().map(|_| Finding { input: input.to_vec(), message: said.unwrap_or_default() })
}

/// Runs the corpus and then `cases` mutated inputs; ends at the first finding.
///
/// # Errors
/// If the corpus cannot be read.
pub fn many(target: &Target, seed: u64, cases: u64) -> Result<std::result::Result<Tally, Finding>> {
    let corpus = Corpus::load(target.name)?;
    let watched = Watched::new(target.name);
    for input in corpus.inputs() {
        watched.begin(input);
        if let Some(finding) = one(target, input) {
            return Ok(Err(finding));
        }
    }
    let mut mutator = Mutator::new(seed);
    for _ in 0..cases {
        let input = mutator.input(corpus.inputs());
        watched.begin(&input);
        if let Some(finding) = one(target, &input) {
            return Ok(Err(finding));
        }
    }
    let kept = corpus.inputs().len() as u64;
    Ok(Ok(Tally { cases: kept + cases, kept }))
}

/// Writes a finding to a file that `replay` takes.
///
/// # Errors
/// If the file cannot be written.
pub fn keep(target: &Target, finding: &Finding) -> Result<PathBuf> {
    let folder = std::env::temp_dir().join("basalt-fuzz");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let number = finding.input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let path = folder.join(format!("{}-{number:016x}", target.name));
    fs::write(&path, &finding.input).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Ends the process with the input at hand when it does not come to an end.
struct Watched {
    begun: Arc<AtomicU64>,
    input: Arc<Mutex<Vec<u8>>>,
}

impl Watched {
    fn new(name: &'static str) -> Self {
        let begun = Arc::new(AtomicU64::new(0));
        let input = Arc::<Mutex<Vec<u8>>>::default();
        let (weak, shown) = (Arc::downgrade(&begun), Arc::clone(&input));
        thread::spawn(move || {
            let (mut last, mut since) = (0, Instant::now());
            while let Some(begun) = weak.upgrade() {
                let now = begun.load(Ordering::Relaxed);
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if since.elapsed() > HANG {
                    let input = shown.lock().unwrap_or_else(PoisonError::into_inner);
                    eprintln!("{name} hangs on input {:02x?}", *input);
                    process::exit(1);
                }
                drop(begun);
                thread::sleep(Duration::from_millis(200));
            }
        });
        Self { begun, input }
    }

    fn begin(&self, input: &[u8]) {
        let mut shown = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        shown.clear();
        shown.extend_from_slice(input);
        self.begun.fetch_add(1, Ordering::Relaxed);
    }
}
