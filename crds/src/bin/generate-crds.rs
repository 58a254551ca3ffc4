//! Writes `crds/yaml` from the types of this crate.

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("yaml");
    let manifests = match basalt_crds::manifests() {
        Ok(manifests) => manifests,
        Err(error) => {
            eprintln!("generate-crds: {error}");
            return ExitCode::FAILURE;
        }
    };
    for manifest in manifests {
        let path = folder.join(manifest.file_name);
        if let Err(error) = std::fs::write(&path, manifest.content) {
            eprintln!("generate-crds: cannot write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        println!("{}", path.display());
    }
    ExitCode::SUCCESS
}
