//! A cluster of member processes in a temporary directory.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use basalt_client::{Client, ClientConfig, MembersInfo};
use basalt_identity::{CertificateAuthority, Credentials, Identity, Role, Security, SubjectName};
use basalt_model::{MemberId, NodeSpec, RequestId};

pub(crate) const CLUSTER: &str = "test";

/// One member: its ports, its directory, its process while it runs.
pub(crate) struct MemberProcess {
    pub(crate) id: u64,
    pub(crate) api: u16,
    pub(crate) peer: u16,
    pub(crate) metrics: u16,
    process: Option<Child>,
}

/// Member processes with a certificate authority. Everything is gone when it is dropped.
pub(crate) struct Cluster {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) members: Vec<MemberProcess>,
}

impl Cluster {
    /// Starts members 1 to `count`; member 1 bootstraps.
    pub(crate) fn start(count: u64) -> Self {
        let members = (1..=count).map(MemberProcess::new).collect();
        let mut cluster = Self { directory: tempfile::tempdir().unwrap(), members };
        for id in 1..=count {
            cluster.spawn(id, id == 1);
        }
        cluster
    }

    /// Adds a member that is not running yet.
    pub(crate) fn prepare(&mut self, id: u64) {
        self.members.push(MemberProcess::new(id));
    }

    pub(crate) fn member(&self, id: u64) -> &MemberProcess {
        self.members.iter().find(|member| member.id == id).unwrap()
    }

    fn member_mut(&mut self, id: u64) -> &mut MemberProcess {
        self.members.iter_mut().find(|member| member.id == id).unwrap()
    }

    /// Starts a member's process.
    pub(crate) fn spawn(&mut self, id: u64, bootstrap: bool) {
        let all = self.members.iter().map(|member| member.id).collect::<Vec<_>>();
        self.spawn_among(id, bootstrap, &all);
    }

    /// Starts a member's process that is told of these members.
    pub(crate) fn spawn_among(&mut self, id: u64, bootstrap: bool, peers: &[u64]) {
        let mut command = self.command_among(id, peers);
        if bootstrap {
            command.arg("--bootstrap");
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join(format!("member-{id}.log")))
            .unwrap();
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.member_mut(id).process = Some(process);
    }

    /// The command line of a member.
    pub(crate) fn command(&self, id: u64) -> Command {
        let all = self.members.iter().map(|member| member.id).collect::<Vec<_>>();
        self.command_among(id, &all)
    }

    fn command_among(&self, id: u64, peers: &[u64]) -> Command {
        let list = |port: fn(&MemberProcess) -> u16| {
            let peers = self.members.iter().filter(|member| peers.contains(&member.id));
            let entries = peers.map(|member| format!("{}=127.0.0.1:{}", member.id, port(member)));
            entries.collect::<Vec<_>>().join(",")
        };
        let files = self.authority().issue(
            &Identity::new(CLUSTER, Role::Member, id.to_string()).unwrap(),
            &[SubjectName::Ip([127, 0, 0, 1].into())],
        );
        let files = files.unwrap();
        let member = self.member(id);
        let mut command = Command::new(env!("CARGO_BIN_EXE_basalt-control"));
        command
            .args(["--member-id", &id.to_string(), "--cluster-name", CLUSTER])
            .arg("--data-dir")
            .arg(self.data_dir(id))
            .args(["--api-listen", &format!("127.0.0.1:{}", member.api)])
            .args(["--peer-listen", &format!("127.0.0.1:{}", member.peer)])
            .args(["--metrics-listen", &format!("127.0.0.1:{}", member.metrics)])
            .args(["--peers", &list(|member| member.peer)])
            .args(["--api-peers", &list(|member| member.api)])
            .arg("--tls-ca")
            .arg(files.ca)
            .arg("--tls-cert")
            .arg(files.certificate)
            .arg("--tls-key")
            .arg(files.key)
            .args(["--log-filter", "info,basalt_core=debug,basalt_raft=debug,basalt_control=debug"]);
        command
    }

    pub(crate) fn data_dir(&self, id: u64) -> PathBuf {
        self.directory.path().join(format!("member-{id}"))
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, id: u64) {
        let mut process = self.member_mut(id).process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Asks a member to stop, as a supervisor does, and waits until it has.
    pub(crate) fn stop(&mut self, id: u64) -> ExitStatus {
        let mut process = self.member_mut(id).process.take().unwrap();
        let told = Command::new("kill").args(["-TERM", &process.id().to_string()]).status().unwrap();
        assert!(told.success());
        process.wait().unwrap()
    }

    /// Waits for a member that ends by itself.
    pub(crate) async fn ends(&mut self, id: u64) -> ExitStatus {
        let mut process = self.member_mut(id).process.take().unwrap();
        eventually("the member ends", async || process.try_wait().unwrap()).await
    }

    /// Puts a stopped member's directory aside as a copy, or the copy back.
    pub(crate) fn copy_directory(&self, id: u64, back: bool) {
        let (live, copy) = (self.data_dir(id), self.directory.path().join(format!("copy-of-{id}")));
        let (from, to) = if back { (copy, live) } else { (live, copy) };
        if to.exists() {
            fs::remove_dir_all(&to).unwrap();
        }
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    }

    pub(crate) fn authority(&self) -> CertificateAuthority {
        CertificateAuthority::create_or_load(&self.directory.path().join("pki"), CLUSTER).unwrap()
    }

    pub(crate) fn credentials(&self, role: Role, name: &str) -> Arc<Credentials> {
        let identity = Identity::new(CLUSTER, role, name).unwrap();
        Credentials::load(&self.authority().issue(&identity, &[]).unwrap()).unwrap()
    }

    /// A client that knows all members.
    pub(crate) fn client(&self) -> Client {
        let all = self.members.iter().map(|member| member.id).collect::<Vec<_>>();
        self.client_of(&all, Role::Cli)
    }

    /// A client that knows only these members.
    pub(crate) fn client_of(&self, ids: &[u64], role: Role) -> Client {
        let endpoints = ids.iter().map(|id| format!("127.0.0.1:{}", self.member(*id).api)).collect();
        let mut config = ClientConfig::new(endpoints, Security::Tls(self.credentials(role, "tester")));
        config.attempt_timeout = Duration::from_secs(12);
        Client::new(config).unwrap()
    }

    pub(crate) fn log(&self, id: u64) -> String {
        fs::read_to_string(self.directory.path().join(format!("member-{id}.log"))).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in &self.members {
                let log = self.log(member.id);
                let tail = log.lines().rev().take(40).collect::<Vec<_>>();
                eprintln!("--- member {} (last lines)", member.id);
                for line in tail.iter().rev() {
                    eprintln!("{line}");
                }
            }
        }
        for member in &mut self.members {
            if let Some(process) = &mut member.process {
                process.kill().ok();
                process.wait().ok();
            }
        }
    }
}

impl MemberProcess {
    fn new(id: u64) -> Self {
        let [api, peer, metrics] = ports();
        Self { id, api, peer, metrics, process: None }
    }
}

/// Free ports. Another process may take one before it is used; the test then fails with "port in use".
fn ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// Polls until `look` finds what it looks for.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the leader sees this many voters, and says who is who.
pub(crate) async fn voters(client: &Client, count: usize) -> MembersInfo {
    eventually("voters", async || {
        let info = client.list_members().await.ok()?;
        let votes = |member: &&basalt_client::MemberInfo| {
            matches!(member.role, basalt_client::MemberRole::Leader | basalt_client::MemberRole::Voter)
        };
        (info.leader.is_some() && info.members.iter().filter(votes).count() == count).then_some(info)
    })
    .await
}

/// The member that leads.
pub(crate) async fn leader(client: &Client) -> u64 {
    eventually("a leader", async || client.cluster_status().await.ok()?.leader).await.get()
}

pub(crate) fn member_id(id: u64) -> MemberId {
    MemberId::new(id).unwrap()
}

pub(crate) fn request(id: &str) -> RequestId {
    id.parse().unwrap()
}

/// A node that no daemon will ever join.
pub(crate) fn node_spec(disk: &str) -> NodeSpec {
    let pool = basalt_model::PoolSpec {
        disks: vec![disk.parse().unwrap()],
        labels: std::collections::BTreeMap::new(),
        over_provisioning: basalt_model::OverProvisioning::default(),
        layout: basalt_model::PoolLayout::default(),
        allocation_unit: basalt_model::AllocationUnit::default(),
    };
    NodeSpec {
        address: [127, 0, 0, 1].into(),
        listeners: vec![basalt_model::Listener {
            transport: basalt_model::Transport::Tcp,
            bind: "127.0.0.1:4420".parse().unwrap(),
            advertise: "127.0.0.1:4420".parse().unwrap(),
        }],
        pools: std::collections::BTreeMap::from([("p1".parse().unwrap(), pool)]),
        cores: basalt_model::Cores::Count(1),
        unschedulable: false,
    }
}

/// What a plain HTTP GET answers.
pub(crate) fn http_get(port: u16, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
