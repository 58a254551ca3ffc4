//! Measures what an idle reactor costs and what waking it adds: an echo server on a reactor, a blocking client beside it.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use basalt_dma::Segment;
use basalt_reactor::{Handle, Polling, Progress, ReactorOptions, Received, Socket, start};

const ROUNDS: usize = 300;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (name, polling) in [("adaptive", Polling::default()), ("busy", Polling::Busy)] {
        let (report, address) = mpsc::channel();
        let options = ReactorOptions { polling, ..ReactorOptions::default() };
        let reactor = start("echo", None, options, move |handle| serve(handle, &report))?;
        let mut client = TcpStream::connect(address.recv()?)?;
        client.set_nodelay(true)?;
        exchange(&mut client)?;
        let before = reactor.remote().stats();
        std::thread::sleep(Duration::from_secs(2));
        let after = reactor.remote().stats();
        let turns = after.turns - before.turns;
        let mut rests: Vec<_> = [Duration::ZERO, Duration::from_millis(5)]
            .into_iter()
            .map(|rest| median(&mut client, rest))
            .collect::<Result<_, _>>()?;
        let (cold, hot) = (rests.pop().unwrap_or_default(), rests.pop().unwrap_or_default());
        let ran = processor_time(reactor.remote())?;
        println!(
            "{name}: {turns} turns in 2 s idle, exchange {hot:?} busy, {cold:?} after 5 ms idle, {ran:?} of processor"
        );
        reactor.join().map_err(|_| "the reactor panicked")?;
    }
    Ok(())
}

/// Processor time of the reactor's thread in one idle second.
fn processor_time(remote: &basalt_reactor::Remote) -> Result<Duration, Box<dyn std::error::Error>> {
    let ask = || -> Result<u64, Box<dyn std::error::Error>> {
        let (report, answer) = mpsc::channel();
        remote.post(move |_| {
            let schedule = std::fs::read_to_string("/proc/thread-self/schedstat");
            // The asker waits for it.
            drop(report.send(schedule));
        })?;
        let schedule = answer.recv()??;
        Ok(schedule.split_whitespace().next().ok_or("an empty schedstat")?.parse()?)
    };
    let before = ask()?;
    std::thread::sleep(Duration::from_secs(1));
    Ok(Duration::from_nanos(ask()? - before))
}

fn median(client: &mut TcpStream, rest: Duration) -> std::io::Result<Duration> {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        std::thread::sleep(rest);
        times.push(exchange(client)?);
    }
    times.sort_unstable();
    Ok(times[ROUNDS / 2])
}

fn exchange(client: &mut TcpStream) -> std::io::Result<Duration> {
    let began = Instant::now();
    let mut bytes = [7; 64];
    client.write_all(&bytes)?;
    client.read_exact(&mut bytes)?;
    Ok(began.elapsed())
}

fn serve(handle: &Handle, report: &mpsc::Sender<std::net::SocketAddr>) {
    let Ok(listener) = handle.listen(([127, 0, 0, 1], 0).into()) else { return };
    let Ok(address) = listener.local_address() else { return };
    if report.send(address).is_err() {
        return;
    }
    let mut connection: Option<Socket> = None;
    let mut bytes = vec![0; 4096];
    handle.add_poller(move || {
        if connection.is_none() {
            connection = listener.accept().unwrap_or(None);
        }
        let Some(socket) = &connection else { return Progress::Idle };
        match socket.receive(&mut bytes) {
            Ok(Received::Bytes(count)) => {
                // Small enough that the socket's buffer has room.
                if socket.send(&[Segment::new(&bytes[..count])]).is_err() {
                    connection = None;
                }
                Progress::Busy
            }
            Ok(Received::Nothing) => Progress::Idle,
            Ok(Received::End) | Err(_) => {
                connection = None;
                Progress::Busy
            }
        }
    });
}
