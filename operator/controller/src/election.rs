//! One operator acts at a time: leader election on a `Lease` of `coordination.k8s.io`.
//!
//! Whoever writes the lease last holds it, guarded by its resource version. A candidate takes it over when it has seen the
//! same version for a whole lease duration on its own clock: clocks are compared with nothing but themselves. The holder
//! renews at a quarter of the duration and stops acting at three quarters, counted from before the renewal was sent; so it
//! has stopped when a candidate may begin, as long as clock rates differ by less than a quarter.
//!
//! The lease also tells when the apiserver has lost what it knew, because it was emptied or an older state was put back: the holder
//! finds it gone, or not as it has written it. A watch does not tell: it goes on from where it was, behind all there is to come.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use tokio::time::Instant;

use crate::fence::Fence;

/// Which lease, and for whom.
#[derive(Clone, Debug)]
pub struct ElectionConfig {
    /// Namespace of the lease.
    pub namespace: String,
    /// Name of the lease.
    pub name: String,
    /// Who this process is; no two processes may be the same.
    pub identity: String,
    /// How long after its last renewal a holder counts as gone. Whole seconds, at least 4.
    pub duration: Duration,
}

/// One process's part in the election.
pub struct Election {
    config: ElectionConfig,
    api: Api<Lease>,
    fence: Fence,
    watched: Watched,
    /// The version of the lease that was written last. Only the holder writes it.
    newest: u64,
}

/// Why a process does not hold the lease any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Another process has it.
    Taken,
    /// It could not be renewed in time.
    Expired,
    /// It is gone, or not as it was written last: nothing that was seen of the apiserver before is to be believed.
    Forgotten,
}

/// What a candidate may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nobody holds the lease, or its holder is gone.
    Take,
    /// It is held.
    Wait,
}

/// Since when the lease has been as it is, on our clock.
#[derive(Debug, Default)]
struct Watched {
    version: Option<String>,
    since: Option<Instant>,
}

impl Watched {
    fn turn(&mut self, lease: &Lease, identity: &str, now: Instant) -> Turn {
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder.is_empty() || holder == identity {
            return Turn::Take;
        }
        if self.version != lease.metadata.resource_version || self.since.is_none() {
            self.version.clone_from(&lease.metadata.resource_version);
            self.since = Some(now);
        }
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        let unchanged = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if unchanged >= duration { Turn::Take } else { Turn::Wait }
    }
}

impl Election {
    /// A candidate. `fence` is opened and closed by what happens here.
    #[must_use]
    pub fn new(client: Client, config: ElectionConfig, fence: Fence) -> Self {
        let api = Api::namespaced(client, &config.namespace);
        Self { config, api, fence, watched: Watched::default(), newest: 0 }
    }

    /// Tries once to get the lease. True: it is ours, and the fence is open.
    ///
    /// # Errors
    /// When the apiserver does not answer.
    pub async fn try_acquire(&mut self) -> Result<bool, kube::Error> {
        let started = Instant::now();
        self.newest = 0;
        let written = match self.api.get_opt(&self.config.name).await? {
            None => self.api.create(&PostParams::default(), &self.mine(None)).await,
            Some(lease) => match self.watched.turn(&lease, &self.config.identity, started) {
                Turn::Wait => return Ok(false),
                Turn::Take => self.replace(&self.mine(Some(&lease))).await,
            },
        };
        self.written(started, written)
    }

    /// Renews the lease until it is lost; then the fence is closed.
    pub async fn keep(&mut self) -> Lost {
        let mut ticks = tokio::time::interval(self.config.duration / 4);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut lost = Lost::Expired;
        while let Some(end) = self.fence.end() {
            tokio::select! {
                _ = ticks.tick() => (),
                () = tokio::time::sleep_until(end) => break,
            }
            match tokio::time::timeout_at(end, self.renew()).await {
                Ok(Ok(None)) => (),
                Ok(Ok(Some(why))) => {
                    lost = why;
                    break;
                }
                Ok(Err(error)) => tracing::warn!(%error, "the lease was not renewed; will try again"),
                Err(_) => tracing::warn!("the lease could not be renewed in time"),
            }
        }
        self.fence.close();
        lost
    }

    /// Gives the lease up, so that the next candidate need not wait.
    ///
    /// # Errors
    /// When the apiserver does not answer; the lease expires by itself then.
    pub async fn release(&mut self) -> Result<(), kube::Error> {
        self.fence.close();
        let Some(lease) = self.api.get_opt(&self.config.name).await? else { return Ok(()) };
        if holder(&lease) != Some(&self.config.identity) {
            return Ok(());
        }
        let mut free = self.mine(Some(&lease));
        if let Some(spec) = &mut free.spec {
            spec.holder_identity = Some(String::new());
        }
        self.replace(&free).await.map(|_| ())
    }

    async fn renew(&mut self) -> Result<Option<Lost>, kube::Error> {
        let started = Instant::now();
        let Some(lease) = self.api.get_opt(&self.config.name).await? else {
            return Ok(Some(Lost::Forgotten));
        };
        // Nobody else writes it while it is held. A write of ours that was not answered looks the same, and costs a list.
        if version(&lease) != self.newest && holder(&lease) == Some(&self.config.identity) {
            return Ok(Some(Lost::Forgotten));
        }
        if holder(&lease) != Some(&self.config.identity) {
            return Ok(Some(Lost::Taken));
        }
        let replaced = self.replace(&self.mine(Some(&lease))).await;
        let held = self.written(started, replaced)?;
        Ok((!held).then_some(Lost::Taken))
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, kube::Error> {
        self.api.replace(&self.config.name, &PostParams::default(), lease).await
    }

    fn written(
        &mut self,
        started: Instant,
        written: Result<Lease, kube::Error>,
    ) -> Result<bool, kube::Error> {
        match written {
            Ok(lease) => {
                self.newest = version(&lease);
                self.fence.extend(started + self.config.duration * 3 / 4);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The lease as we write it, on top of what is there.
    fn mine(&self, present: Option<&Lease>) -> Lease {
        let before = present.and_then(|lease| lease.spec.as_ref());
        let ours = present.is_some_and(|lease| holder(lease) == Some(&self.config.identity));
        let now = MicroTime(Timestamp::now());
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        let changes_hands = present.is_some() && !ours;
        Lease {
            metadata: ObjectMeta {
                name: Some(self.config.name.clone()),
                namespace: Some(self.config.namespace.clone()),
                resource_version: present.and_then(ResourceExt::resource_version),
                uid: present.and_then(ResourceExt::uid),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.config.identity.clone()),
                lease_duration_seconds: Some(
                    i32::try_from(self.config.duration.as_secs()).unwrap_or(i32::MAX),
                ),
                acquire_time: before
                    .and_then(|spec| spec.acquire_time.clone())
                    .filter(|_| ours)
                    .or_else(|| Some(now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(transitions.saturating_add(i32::from(changes_hands))),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// Versions of one object are numbers that grow (KEP-5504); of another form they tell nothing.
fn version(lease: &Lease) -> u64 {
    lease.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(8),
                ..LeaseSpec::default()
            }),
        }
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_ours_or_stale_and_not_before() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut watched = Watched::default();
        assert_eq!(watched.turn(&lease("", "1"), "me", start), Turn::Take);
        assert_eq!(watched.turn(&lease("me", "1"), "me", start), Turn::Take);
        assert_eq!(watched.turn(&lease("other", "1"), "me", start), Turn::Wait);
        assert_eq!(watched.turn(&lease("other", "1"), "me", after(7)), Turn::Wait);
        assert_eq!(watched.turn(&lease("other", "2"), "me", after(8)), Turn::Wait);
        assert_eq!(watched.turn(&lease("other", "2"), "me", after(15)), Turn::Wait);
        assert_eq!(watched.turn(&lease("other", "2"), "me", after(16)), Turn::Take);
    }
}
