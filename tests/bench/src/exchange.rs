//! The physical bound: the same messages over the same two cores, with nothing behind them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::subject::{Figures, LOAD_CORE, TARGET_CORE, Work};

/// One read takes this much at most, and one write gives it.
const BATCH: usize = 256 << 10;
const COMMON_HEADER: usize = 8;
const SQE: usize = 64;
/// Of data and response PDUs.
const HEADER: usize = 24;

/// Messages of the sizes that one kind of work has, in numbers that it has.
#[derive(Debug)]
pub(crate) struct Exchange {
    request: usize,
    reply: usize,
    depth: usize,
    connections: usize,
}

/// One end of a connection: whole messages of one size come in, and each is answered by bytes of another.
#[derive(Debug)]
struct End {
    stream: TcpStream,
    takes: usize,
    gives: usize,
    partial: usize,
    owed: usize,
}

impl Exchange {
    /// Request and reply as NVMe/TCP has them: command capsule with its data, data PDU with the success flag, response.
    pub(crate) fn like(work: &Work) -> Self {
        let (bytes, capsule) = (work.bytes as usize, COMMON_HEADER + SQE);
        let (request, reply) = match work.reads() {
            true => (capsule, HEADER + bytes),
            false => (capsule + bytes, HEADER),
        };
        Self { request, reply, depth: work.depth.into(), connections: work.queues.into() }
    }

    /// Runs it for a time.
    pub(crate) fn run(&self, duration: Duration) -> Result<Figures> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
        let address = listener.local_addr()?;
        let (stop, busy_ns) = (AtomicBool::new(false), AtomicU64::new(0));
        let (served, exchanges, elapsed) = thread::scope(|scope| {
            let server = scope.spawn(|| self.serve(&listener, &stop, &busy_ns));
            let outcome = self.load(address, duration);
            stop.store(true, Ordering::Relaxed);
            // An accept that still waits must end.
            drop(TcpStream::connect(address));
            let served = server.join().map_err(|_| anyhow!("the serving thread panicked"))??;
            outcome.map(|(exchanges, elapsed)| (served, exchanges, elapsed))
        })?;
        let per_second = exchanges as f64 / elapsed.as_secs_f64();
        let latency = elapsed.as_secs_f64() * 1e6 * (self.depth * self.connections) as f64;
        Ok(Figures {
            per_second,
            mean_us: latency / exchanges.max(1) as f64,
            busy_ns: busy_ns.into_inner() as f64 / served.max(1) as f64,
            ..Figures::default()
        })
    }

    fn serve(&self, listener: &TcpListener, stop: &AtomicBool, busy_ns: &AtomicU64) -> Result<u64> {
        pin(TARGET_CORE)?;
        let mut ends = Vec::new();
        for _ in 0..self.connections {
            ends.push(End::new(listener.accept()?.0, self.request, self.reply)?);
        }
        let (mut buffer, mut served, mut busy) = (vec![0; BATCH], 0, Duration::ZERO);
        let mut began = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let mut came = 0;
            let mut moved = false;
            for end in &mut ends {
                let (messages, some) = end.step(&mut buffer)?;
                came += messages;
                moved |= some;
            }
            let now = Instant::now();
            if moved {
                busy += now - began;
            }
            began = now;
            served += came;
        }
        busy_ns.store(u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(served)
    }

    fn load(&self, address: std::net::SocketAddr, duration: Duration) -> Result<(u64, Duration)> {
        // A thread of its own would lose what it is pinned to.
        thread::scope(|scope| {
            let load = scope.spawn(|| {
                pin(LOAD_CORE)?;
                let mut ends = Vec::new();
                for _ in 0..self.connections {
                    let mut end = End::new(TcpStream::connect(address)?, self.reply, self.request)?;
                    end.owed = self.depth * self.request;
                    ends.push(end);
                }
                let (mut buffer, mut exchanges, started) = (vec![0; BATCH], 0, Instant::now());
                while started.elapsed() < duration {
                    for end in &mut ends {
                        exchanges += end.step(&mut buffer)?.0;
                    }
                }
                Ok((exchanges, started.elapsed()))
            });
            load.join().map_err(|_| anyhow!("the loading thread panicked"))?
        })
    }
}

impl End {
    fn new(stream: TcpStream, takes: usize, gives: usize) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        // As reactors do between two ends on one machine.
        rustix::net::sockopt::set_tcp_congestion(&stream, "reno")?;
        Ok(Self { stream, takes, gives, partial: 0, owed: 0 })
    }

    /// Takes what has come and gives what is owed: how many messages came, and whether anything moved.
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<(u64, bool)> {
        let received = or_nothing(self.stream.read(buffer))?;
        let (came, rest) = ((self.partial + received) / self.takes, (self.partial + received) % self.takes);
        self.partial = rest;
        self.owed += came * self.gives;
        let mut sent = 0;
        if self.owed > 0 {
            let length = self.owed.min(buffer.len());
            sent = or_nothing(self.stream.write(&buffer[..length]))?;
            self.owed -= sent;
        }
        Ok((came as u64, received + sent > 0))
    }
}

/// Nothing now, or nothing ever again: the other end says when that is.
fn or_nothing(moved: io::Result<usize>) -> io::Result<usize> {
    match moved {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Ok(0),
        other => other,
    }
}

/// Keeps the calling thread on a core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on core {core}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_exchanged_and_counted() {
        for work in Work::ALL {
            let figures = Exchange::like(work).run(Duration::from_millis(50)).unwrap();
            assert!(figures.per_second > 0.0 && figures.busy_ns > 0.0, "{}: {figures:?}", work.name());
        }
    }
}
