//! One boot of a guest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Image;
use crate::Error;

const DEFAULT_DEADLINE: Duration = Duration::from_secs(300);
const DEFAULT_MEMORY_MIB: u32 = 1024;
const INTERVAL: Duration = Duration::from_millis(50);
/// Debian 12's QEMU (7.2) ends with a segmentation fault now and then while the machine starts, without a word.
const RESTARTS_MAX: u32 = 2;
/// What `host-call` ends with when the test has no such hook.
const NO_SUCH_HOOK: i32 = 127;

/// A part of the test that the guest's script can call; gets the arguments, gives the status that the script sees.
pub type Hook<'a> = Box<dyn FnMut(&[&str]) -> i32 + 'a>;

/// What a guest is given.
pub struct Guest<'a> {
    image: &'a Image,
    environment: BTreeMap<String, String>,
    hooks: BTreeMap<&'static str, Hook<'a>>,
    deadline: Duration,
    files: BTreeMap<String, PathBuf>,
    nvme_mib: Option<u64>,
}

/// What came of a script.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its exit status.
    pub status: i32,
    /// Everything that it printed, and, if it failed, the kernel's last messages.
    pub output: String,
}

impl<'a> Guest<'a> {
    /// A guest with two processors and 1 GiB of memory.
    #[must_use]
    pub fn new(image: &'a Image) -> Self {
        Self {
            image,
            environment: BTreeMap::new(),
            hooks: BTreeMap::new(),
            deadline: DEFAULT_DEADLINE,
            files: BTreeMap::new(),
            nvme_mib: None,
        }
    }

    /// Sets a variable for the script.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Lets the script call `host-call NAME ARGS`.
    #[must_use]
    pub fn hook(mut self, name: &'static str, hook: impl FnMut(&[&str]) -> i32 + 'a) -> Self {
        self.hooks.insert(name, Box::new(hook));
        self
    }

    /// Puts a copy of a file into the script's folder, /run/job.
    #[must_use]
    pub fn file(mut self, name: &str, path: &Path) -> Self {
        self.files.insert(name.to_owned(), path.to_owned());
        self
    }

    /// Gives the guest an NVMe SSD of this size in MiB, empty, with the serial number `basalt-ssd`; `modprobe nvme` finds it.
    #[must_use]
    pub fn nvme(mut self, mib: u64) -> Self {
        self.nvme_mib = Some(mib);
        self
    }

    /// How long boot and script may take together; 300 s unless set.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Boots, runs `script` with bash, and waits for its end.
    ///
    /// # Errors
    /// [`Error::Deadline`] and [`Error::NoStatus`] leave a folder with the console behind; [`Error::Run`] and [`Error::File`]
    /// when the guest cannot be started.
    pub fn run(mut self, script: &str) -> Result<Outcome, Error> {
        let folder = tempfile::Builder::new()
            .prefix("basalt-guest-")
            .tempdir()
            .map_err(Error::file("creating", &std::env::temp_dir()))?;
        let job = Job { dir: folder.path().to_owned() };
        job.write(script, &self.environment, &self.files)?;
        let calls = UnixListener::bind(job.socket()).map_err(Error::file("binding", &job.socket()))?;
        let mut status = self.boot(&job, &calls);
        for _ in 0..RESTARTS_MAX {
            match &status {
                Err(Error::NoStatus { ended, .. }) if ended.contains("signal") && job.is_untouched() => {
                    eprintln!("QEMU crashed before the guest began ({ended}); it is started again");
                    status = self.boot(&job, &calls);
                }
                _ => break,
            }
        }
        let output = fs::read(job.output()).map_err(Error::file("reading", &job.output()))?;
        let output = String::from_utf8_lossy(&output).into_owned();
        match status {
            Ok(status) => Ok(Outcome { status, output }),
            Err(error) => {
                // Kept for whoever looks for the reason.
                let kept = folder.keep();
                eprintln!("{output}\n{} is kept", kept.display());
                Err(error)
            }
        }
    }

    /// One run of QEMU.
    fn boot(&mut self, job: &Job, calls: &UnixListener) -> Result<i32, Error> {
        let mut machine = Machine(job.boot(self.image, self.nvme_mib)?);
        self.serve(job, calls, &mut machine)
    }

    /// Answers the guest's calls until it reports a status.
    fn serve(&mut self, job: &Job, calls: &UnixListener, machine: &mut Machine) -> Result<i32, Error> {
        let started = Instant::now();
        calls.set_nonblocking(true).map_err(Error::file("setting", &job.socket()))?;
        let mut stream: Option<BufReader<UnixStream>> = None;
        let mut line = Vec::new();
        loop {
            if started.elapsed() > self.deadline {
                return Err(Error::Deadline { seconds: self.deadline.as_secs(), job: job.dir.clone() });
            }
            let Some(reader) = &mut stream else {
                match calls.accept() {
                    Ok((accepted, _)) => {
                        accepted
                            .set_nonblocking(false)
                            .and_then(|()| accepted.set_read_timeout(Some(INTERVAL)))
                            .map_err(Error::file("setting", &job.socket()))?;
                        stream = Some(BufReader::new(accepted));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock && machine.is_running() => {
                        sleep(INTERVAL);
                    }
                    Err(_) => return Err(machine.no_status(job)),
                }
                continue;
            };
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => return Err(machine.no_status(job)),
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line).into_owned();
                    line.clear();
                    if let Some(status) = text.trim().strip_prefix("exit ") {
                        return status.parse().map_err(|_| machine.no_status(job));
                    }
                    let status = self.call(text.trim());
                    writeln!(reader.get_mut(), "{status}").map_err(Error::file("writing", &job.socket()))?;
                }
                // What was read of a line stays in `line`.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if !machine.is_running() {
                        return Err(machine.no_status(job));
                    }
                }
                Err(error) => return Err(Error::file("reading", &job.socket())(error)),
            }
        }
    }

    fn call(&mut self, line: &str) -> i32 {
        let mut words = line.split_whitespace();
        match (words.next(), words.next().and_then(|name| self.hooks.get_mut(name))) {
            (Some("call"), Some(hook)) => hook(&words.collect::<Vec<_>>()),
            _ => {
                eprintln!("the guest called what is not there: {line}");
                NO_SUCH_HOOK
            }
        }
    }
}

/// A running QEMU; it ends with this value.
struct Machine(Child);

impl Machine {
    fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// The guest is gone, or said something else than a status.
    fn no_status(&mut self, job: &Job) -> Error {
        // A QEMU that closed its end is about to end.
        for _ in 0..20 {
            match self.0.try_wait() {
                Ok(None) => sleep(INTERVAL),
                Ok(Some(status)) => {
                    return Error::NoStatus {
                        job: job.dir.clone(),
                        ended: format!("QEMU ended with {status}"),
                    };
                }
                Err(error) => return Error::NoStatus { job: job.dir.clone(), ended: error.to_string() },
            }
        }
        Error::NoStatus { job: job.dir.clone(), ended: "QEMU runs on".to_owned() }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait().map(|_| ())) {
            eprintln!("QEMU cannot be ended: {error}");
        }
    }
}

/// The folder that a guest is started from.
struct Job {
    dir: PathBuf,
}

impl Job {
    fn socket(&self) -> PathBuf {
        self.dir.join("call.sock")
    }

    fn output(&self) -> PathBuf {
        self.dir.join("output.log")
    }

    /// Whether the guest has said nothing yet, so that nothing outside it can have changed.
    fn is_untouched(&self) -> bool {
        fs::metadata(self.output()).is_ok_and(|output| output.len() == 0)
    }

    /// Packs script and environment into what the guest sees as a disk.
    fn write(
        &self,
        script: &str,
        environment: &BTreeMap<String, String>,
        files: &BTreeMap<String, PathBuf>,
    ) -> Result<(), Error> {
        let variables: String =
            environment.iter().map(|(name, value)| format!("{name}={}\n", quoted(value))).collect();
        for (name, text) in [("script", script), ("env", &variables), ("output.log", "")] {
            let path = self.dir.join(name);
            fs::write(&path, text).map_err(Error::file("writing", &path))?;
        }
        for (name, path) in files {
            fs::copy(path, self.dir.join(name)).map_err(Error::file("copying", path))?;
        }
        let status = Command::new("tar")
            .arg("--create")
            .arg("--file=job.tar")
            .args(["script", "env"])
            .args(files.keys())
            .current_dir(&self.dir)
            .status()
            .map_err(Error::run("tar"))?;
        if !status.success() {
            return Err(Error::Failed { program: "tar".to_owned(), message: status.to_string() });
        }
        Ok(())
    }

    fn boot(&self, image: &Image, nvme_mib: Option<u64>) -> Result<Child, Error> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        let log_path = self.dir.join("qemu.log");
        let log = File::create(&log_path).map_err(Error::file("creating", &log_path))?;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"])
            .args(["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,la57=off", "-smp", "2"])
            .args(["-m", &DEFAULT_MEMORY_MIB.to_string()])
            .arg("-kernel")
            .arg(image.kernel())
            .arg("-initrd")
            .arg(image.initrd())
            .args([
                "-append",
                "console=ttyS0 quiet no_timer_check panic=-1 mitigations=off random.trust_cpu=on",
            ])
            .args(["-serial", &format!("file:{}", file("console.log"))])
            .args(disk("root", "basalt-root", &image.root()))
            .args(disk("job", "basalt-job", &self.dir.join("job.tar")))
            .args(["-netdev", "user,id=net"])
            .args(["-device", "virtio-net-pci,netdev=net,mac=52:54:00:12:34:56"])
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("file,id=output,path={}", file("output.log"))])
            .args(["-device", "virtserialport,chardev=output,name=basalt.output"])
            .args(["-chardev", &format!("socket,id=call,path={}", file("call.sock"))])
            .args(["-device", "virtserialport,chardev=call,name=basalt.call"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(mib) = nvme_mib {
            let ssd = self.dir.join("ssd.img");
            let made = File::create(&ssd).and_then(|file| file.set_len(mib << 20));
            made.map_err(Error::file("creating", &ssd))?;
            qemu.args(["-drive", &format!("if=none,id=ssd,file={},format=raw", ssd.display())])
                .args(["-device", "nvme,drive=ssd,serial=basalt-ssd,max_ioqpairs=4"]);
        }
        qemu.spawn().map_err(Error::run("qemu-system-x86_64"))
    }
}

/// A read-only virtio disk that several guests may share.
fn disk(id: &str, serial: &str, path: &Path) -> [String; 4] {
    [
        "-drive".to_owned(),
        format!("if=none,id={id},file={},format=raw,readonly=on,file.locking=off", path.display()),
        "-device".to_owned(),
        format!("virtio-blk-pci,drive={id},serial={serial}"),
    ]
}

/// One word for the shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_reach_the_shell_as_they_are() {
        for value in ["", "plain", "two words", "it's", "$HOME `x` \"y\" \\"] {
            let output =
                Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(value))).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
        }
    }
}
