//! Lists the marks and planted bugs of the production code, and the marks of the data plane's world, so that neither list can be
//! forgotten.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Folders with code that the simulator cannot run, or that only describes the macros.
const NOT_SIMULATED: &[&str] = &[
    "controlplane/server",
    "controlplane/client",
    "dataplane/clock",
    "dataplane/daemon",
    "dataplane/device-uring",
];

fn main() -> io::Result<()> {
    println!("cargo::rustc-check-cfg=cfg(basalt_planted)");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../..");
    let mut marks = BTreeMap::new();
    let mut bugs = BTreeMap::new();
    for side in ["controlplane", "dataplane"] {
        println!("cargo::rerun-if-changed={}", root.join(side).display());
        for entry in fs::read_dir(root.join(side))? {
            let name = entry?.file_name();
            let folder = format!("{side}/{}", name.to_string_lossy());
            if !NOT_SIMULATED.contains(&folder.as_str()) {
                scan(&root.join(&folder).join("src"), &folder, &mut marks, &mut bugs)?;
            }
        }
    }
    // What hosts must come to do, so that a run in which they do not is noticed.
    let (world, owner) = (root.join("tests/simulator/src/data"), "tests/simulator");
    println!("cargo::rerun-if-changed={}", world.display());
    scan(&world, owner, &mut marks, &mut bugs)?;
    let mut code = String::new();
    list(&mut code, "MARKS", "Every mark and the folder of the crate that holds it.", &marks);
    list(&mut code, "BUGS", "Every planted bug and the folder of the crate that holds it.", &bugs);
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("catalogue.rs");
    fs::write(out, code)
}

fn list(code: &mut String, name: &str, doc: &str, of: &BTreeMap<String, String>) {
    let entries: Vec<(&String, &String)> = of.iter().collect();
    // Writing to a string cannot fail.
    let written = write!(code, "/// {doc}\npub const {name}: &[(&str, &str)] = &{entries:?};\n");
    assert!(written.is_ok());
}

fn scan(
    folder: &Path,
    owner: &str,
    marks: &mut BTreeMap<String, String>,
    bugs: &mut BTreeMap<String, String>,
) -> io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            scan(&path, owner, marks, bugs)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            names(&text, "mark!(", owner, marks);
            names(&text, "planted!(", owner, bugs);
        }
    }
    Ok(())
}

/// Finds `macro!("name")`, the name possibly on a line of its own.
fn names(text: &str, call: &str, owner: &str, into: &mut BTreeMap<String, String>) {
    for (at, _) in text.match_indices(call) {
        let rest = text[at + call.len()..].trim_start();
        let Some(quoted) = rest.strip_prefix('"') else { continue };
        if let Some((name, _)) = quoted.split_once('"') {
            into.insert(name.to_owned(), owner.to_owned());
        }
    }
}
