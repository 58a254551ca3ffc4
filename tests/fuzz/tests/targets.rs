//! Every target on its corpus and a few mutated inputs; `cargo xtask test` runs more of them, optimised.

use basalt_fuzz::{Corpus, corpus_folder, run, seeds, targets};

fn stands(name: &str) {
    let Some(target) = targets::named(name) else { panic!("no target {name}") };
    match run::many(target, 1, target.cases / 20) {
        Ok(Ok(tally)) => assert!(tally.cases > tally.kept && tally.kept > 0),
        Ok(Err(finding)) => panic!("{name}: {}\ninput {:02x?}", finding.message, finding.input),
        Err(error) => panic!("{error:#}"),
    }
}

macro_rules! stands {
    ($($test:ident = $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                stands($name);
            }
        )*

        #[test]
        fn every_target_is_tested_and_has_a_corpus() {
            let tested = [$($name),*];
            for target in targets::ALL {
                assert!(tested.contains(&target.name), "{} is not tested", target.name);
                assert!(Corpus::load(target.name).is_ok(), "{} has no corpus", target.name);
            }
            assert_eq!(tested.len(), targets::ALL.len());
        }
    };
}

stands! {
    pdu = "pdu",
    command = "command",
    page = "page",
    reservation = "reservation",
    controller = "controller",
    bringup = "bringup",
    hostile_host = "hostile-host",
    hostile_stream = "hostile-stream",
    hostile_controller = "hostile-controller",
    hostile_wire = "hostile-wire",
}

#[test]
fn made_inputs_are_committed() {
    for (target, name, bytes) in seeds::all() {
        let path = corpus_folder().join(target).join(&name);
        let committed = std::fs::read(&path).unwrap_or_default();
        assert!(committed == bytes, "{} is out of date: basalt-fuzz seeds writes it", path.display());
    }
}
