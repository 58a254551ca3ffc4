//! How much is logged about hosts that do not behave.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use basalt_nvme_wire::Sqe;
use basalt_nvme_wire::opcode::Admin;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::pipe::pipe;
use super::raw::{NONE, capsule};
use super::rig::Rig;

/// Keeps the fields of what is said at INFO and above.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!("{field}={value:?} "));
    }
}

/// So many connections that begin with a command.
fn violate(rig: &mut Rig, count: usize) {
    for _ in 0..count {
        let (host, end) = pipe(1, 100_000);
        let mut connection = rig.accept(end, 0);
        host.inject(&capsule(NONE, &Sqe::new(Admin::KeepAlive.code(), 1), &[]));
        rig.turn(&mut [&mut connection]);
    }
}

#[test]
fn hosts_that_violate_the_protocol_do_not_fill_the_log() {
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), || {
        let mut rig = Rig::new();
        violate(&mut rig, 1000);
        let said = lines.take();
        assert!(said.len() == 1 && !said[0].contains("left_out"), "{said:?}");
        assert!(rig.complaints.is_pending());
        rig.complaints.look(rig.now + Duration::from_millis(999));
        assert!(lines.take().is_empty());
        // What was left out is told with the next one, or after a while by itself.
        rig.now += Duration::from_secs(1);
        violate(&mut rig, 11);
        let said = lines.take();
        assert!(said.len() == 1 && said[0].contains("left_out=999"), "{said:?}");
        rig.now += Duration::from_secs(1);
        rig.complaints.look(rig.now);
        let said = lines.take();
        assert!(said.len() == 1 && said[0].contains("left_out=10"), "{said:?}");
        rig.complaints.look(rig.now + Duration::from_secs(5));
        assert!(lines.take().is_empty() && !rig.complaints.is_pending());
        assert_eq!(rig.complaints.violations(), 1011);
    });
}

#[test]
fn what_is_rare_is_said() {
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), || {
        let mut rig = Rig::new();
        let (_host, end) = pipe(1, 1000);
        let mut late = rig.accept(end, 0);
        violate(&mut rig, 1);
        rig.now += rig.options.connect_timeout;
        late.tick(&mut rig.context());
        violate(&mut rig, 1);
        // Another kind is not kept back by the first.
        assert_eq!(lines.take().len(), 3);
    });
}
