//! Debian's Prometheus, scraping a running cluster.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Error, http};

/// How long a start, or the first scrape of every target, may take.
const DEADLINE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(200);

/// A running Prometheus on loopback; it ends with this value.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Prometheus {
    /// Starts it in `dir`, scraping once a second what `targets` (a file of its file discovery) names, with the alert rules of
    /// `rules`.
    ///
    /// # Errors
    /// [`Error::Failed`] when it does not become ready; the message has its log.
    pub fn start(dir: &Path, targets: &Path, rules: &[PathBuf]) -> Result<Self, Error> {
        let files: Vec<String> = rules.iter().map(|rule| rule.display().to_string()).collect();
        let config = serde_json::json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": files,
            "scrape_configs": [{
                "job_name": "basalt",
                "file_sd_configs": [{"files": [targets.display().to_string()]}],
            }],
        });
        // JSON is YAML.
        let config_path = dir.join("prometheus.yaml");
        fs::write(&config_path, config.to_string()).map_err(Error::file("writing", &config_path))?;
        let log = dir.join("prometheus.log");
        let output = File::create(&log).map_err(Error::file("creating", &log))?;
        let port = basalt_kube::free_ports(1)?[0];
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config_path.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("prometheus").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .map_err(Error::run("prometheus"))?;
        let prometheus = Self { child, port, log };
        prometheus.wait("ready", |prometheus| prometheus.get("/-/ready").is_ok())?;
        Ok(prometheus)
    }

    /// Waits until every target has been scraped often enough for rates.
    ///
    /// # Errors
    /// [`Error::Failed`] when a target does not answer in time.
    pub fn wait_scraped(&self, scrapes: u32) -> Result<(), Error> {
        let few = format!("count_over_time(up[5m]) < {scrapes} or up == 0 or absent(up)");
        self.wait("scraping every target", |prometheus| {
            prometheus.query(&few).is_ok_and(|result| result.is_empty())
        })
    }

    /// Waits until an instant query has a result.
    ///
    /// # Errors
    /// [`Error::Failed`] when it has none in time.
    pub fn wait_for(&self, expression: &str) -> Result<(), Error> {
        self.wait(expression, |prometheus| {
            prometheus.query(expression).is_ok_and(|result| !result.is_empty())
        })
    }

    /// Waits until an instant query has no result any more.
    ///
    /// # Errors
    /// [`Error::Failed`] when it still has one at the deadline.
    pub fn wait_gone(&self, expression: &str) -> Result<(), Error> {
        self.wait(&format!("without {expression}"), |prometheus| {
            prometheus.query(expression).is_ok_and(|result| result.is_empty())
        })
    }

    /// The result of an instant query: a list of series, or of one scalar.
    ///
    /// # Errors
    /// [`Error::Failed`] with what Prometheus says of the query.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>, Error> {
        let answer = self.get(&format!("/api/v1/query?query={}", percent_encoded(expression)))?;
        let data = &answer["data"];
        match data["result"].as_array() {
            Some(list) if data["resultType"] == "scalar" => Ok(vec![Value::from(list.clone())]),
            Some(list) => Ok(list.clone()),
            None => Err(self.failure("query", format!("{expression}: {answer}"))),
        }
    }

    /// The names of all metrics that exist.
    ///
    /// # Errors
    /// [`Error::Failed`] when Prometheus does not answer.
    pub fn metric_names(&self) -> Result<BTreeSet<String>, Error> {
        let answer = self.get("/api/v1/label/__name__/values")?;
        let names = answer["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
    }

    /// Names and queries of all alert and recording rules that are loaded.
    ///
    /// # Errors
    /// [`Error::Failed`] when Prometheus does not answer.
    pub fn rules(&self) -> Result<Vec<(String, String)>, Error> {
        let answer = self.get("/api/v1/rules")?;
        let groups = answer["data"]["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(groups
            .iter()
            .flat_map(|group| group["rules"].as_array().map(Vec::as_slice).unwrap_or_default())
            .filter_map(|rule| Some((rule["name"].as_str()?.to_owned(), rule["query"].as_str()?.to_owned())))
            .collect())
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), Error> {
        let started = Instant::now();
        while !done(self) {
            if started.elapsed() > DEADLINE {
                let log = fs::read_to_string(&self.log).map_err(Error::file("reading", &self.log))?;
                return Err(self.failure(what, format!("not after {} s\n{log}", DEADLINE.as_secs())));
            }
            std::thread::sleep(INTERVAL);
        }
        Ok(())
    }

    fn get(&self, path: &str) -> Result<Value, Error> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let (status, body) = http::get(address, path).map_err(Error::run("prometheus"))?;
        if status != 200 {
            return Err(self.failure(path, body));
        }
        // `/-/ready` answers with a sentence.
        Ok(serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    fn failure(&self, what: &str, message: String) -> Error {
        Error::Failed { program: format!("prometheus on port {}: {what}", self.port), message }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(|_| ())) {
            eprintln!("Prometheus cannot be ended: {error}");
        }
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded_for_a_url() {
        assert_eq!(percent_encoded("rate(a_b[5m]) > 0"), "rate%28a_b%5B5m%5D%29%20%3E%200");
    }
}
