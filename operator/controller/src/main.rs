//! `basalt-operator`: turns `StorageNode` and `Volume` objects into what the control plane is asked for, and what the control
//! plane says into their statuses.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use basalt_client::{Client as ControlClient, ClientConfig};
use basalt_controller::operator::{Operator, run};
use basalt_controller::settings::{Config, Settings};
use basalt_controller::{election::ElectionConfig, meters};
use basalt_telemetry::{Exporter, ExporterConfig, Readiness, init_logs};
use clap::Parser;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::signal::unix::{SignalKind, signal};

/// How long one call to the control plane is tried in all: a status must say soon that nobody answers.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// How long one member has for one answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// The Kubernetes operator of Basalt.
#[derive(Parser)]
#[command(name = "basalt-operator", version, max_term_width = 110)]
struct Arguments {
    /// A TOML file with what flags and environment leave open
    #[arg(long, env = "BASALT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

fn main() -> ExitCode {
    basalt_identity::install_provider();
    match start(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("basalt-operator: {}", basalt_telemetry::sentence(&*error));
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> anyhow::Result<()> {
    let settings = match &arguments.config {
        Some(path) => arguments.settings.or_file(path)?,
        None => arguments.settings,
    };
    let config = settings.check()?;
    init_logs(config.log_format, &config.log_filter)?;
    let readiness = Readiness::new();
    let exporter = ExporterConfig {
        listen: config.metrics_listen,
        process: "basalt-operator",
        version: env!("CARGO_PKG_VERSION"),
    };
    let exporter = Exporter::start(&exporter, readiness.clone())?;
    meters::describe();
    tracing::info!(metrics = %exporter.address(), control = ?config.control, "started");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(config, readiness))
}

async fn serve(config: Config, readiness: Readiness) -> anyhow::Result<()> {
    let kube = kube::Client::try_from(kube_config(&config).await?)?;
    let security = config.security.load()?;
    let control = ClientConfig {
        deadline: CALL_DEADLINE,
        attempt_timeout: ATTEMPT_TIMEOUT,
        ..ClientConfig::new(config.control, security)
    };
    let operator = Operator {
        kube,
        control: ControlClient::new(control)?,
        election: ElectionConfig {
            namespace: config.lease_namespace,
            name: config.lease_name,
            identity: config.identity,
            duration: config.lease_duration,
        },
        readiness,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
    };
    run(operator, shutdown).await;
    Ok(())
}

async fn kube_config(config: &Config) -> anyhow::Result<kube::Config> {
    Ok(match &config.kubeconfig {
        Some(path) => {
            kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default())
                .await?
        }
        None => kube::Config::infer().await?,
    })
}
