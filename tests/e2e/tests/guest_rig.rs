//! The guest rig against itself.

use basalt_e2e::guest::{Guest, Image};

#[test]
#[ignore = "boots a guest; cargo xtask test runs it"]
fn a_script_runs_calls_the_host_and_gives_its_status() {
    let image = Image::ensure(&mut |text| eprintln!("{text}")).unwrap();
    let mut called = Vec::new();
    let outcome = Guest::new(&image)
        .env("GREETING", "hello, it's me")
        .hook("note", |args| {
            called.push(args.join(" "));
            args.len().try_into().unwrap()
        })
        .run("echo \"$GREETING\"; host-call note a b; echo $?; host-call missing; echo $?; nvme version; exit 7")
        .unwrap();
    assert_eq!(outcome.status, 7, "{}", outcome.output);
    assert!(outcome.output.contains("hello, it's me\n2\n127\n"), "{}", outcome.output);
    assert!(outcome.output.contains("nvme version"), "{}", outcome.output);
    assert_eq!(called, ["a b"]);
}
