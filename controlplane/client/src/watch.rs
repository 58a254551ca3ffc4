//! The stream of changes.

use std::time::Duration;

use basalt_model::{Node, NodeName, Revision, Snapshot, SnapshotName, Volume, VolumeId, VolumeName};
use basalt_proto::api::{self, watch_response};
use tonic::{Request, Status, Streaming};

use crate::{
    Client, ClientError,
    client::control,
    error::status_words,
    retry::{Advice, Backoff, advice},
    wire::{self, WireError},
};

/// The server says something at least every 10 s; after this silence the stream counts as dead.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long a member has to open a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// What a watch sees. After an interruption an event may come twice.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A node was created or changed.
    Node(Box<Node>),
    /// A node is gone.
    NodeDeleted(NodeName),
    /// A volume was created or changed.
    Volume(Box<Volume>),
    /// A volume is gone, data included.
    VolumeDeleted {
        /// Its identity.
        id: VolumeId,
        /// Its name.
        name: VolumeName,
    },
    /// A snapshot was created or changed.
    Snapshot(Box<Snapshot>),
    /// A snapshot is gone.
    SnapshotDeleted {
        /// Its identity.
        id: VolumeId,
        /// Its name.
        name: SnapshotName,
    },
    /// Forget what was seen: everything that exists follows, up to the next [`Event::Synced`].
    Reset,
    /// Everything up to this revision has been seen; a later watch can go on from here.
    Synced(Revision),
}

/// A stream of changes that reconnects by itself, to whichever member answers, and goes on where it was.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    from: Revision,
    /// Where `from` is from, once the server has said so.
    place: Option<Place>,
    stream: Option<Streaming<api::WatchResponse>>,
    endpoint: String,
    backoff: Backoff,
}

/// Where revisions are from: those of another cluster or incarnation are other revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    cluster_id: String,
    incarnation: u64,
}

impl Watch {
    pub(crate) fn new(client: Client, from: Revision) -> Self {
        Self { client, from, place: None, stream: None, endpoint: String::new(), backoff: Backoff::new() }
    }

    /// The revision from which this watch would go on.
    pub fn resumes_from(&self) -> Revision {
        self.from
    }

    /// The next event. Waits for as long as it takes, over failures of members and networks; an error means that no
    /// waiting would help (the role may not watch, or a newer server says what this version does not understand).
    ///
    /// Cancel-safe: an event is not lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if self.stream.is_none() {
                match self.open().await {
                    Ok(stream) => self.stream = Some(stream),
                    Err(status) => self.interrupted(&status).await?,
                }
            }
            let Some(stream) = &mut self.stream else { continue };
            let status = match tokio::time::timeout(SILENCE_MAX, stream.message()).await {
                Ok(Ok(Some(message))) => {
                    self.backoff.reset();
                    if let Some(watch_response::Event::Progress(progress)) = &message.event {
                        let (cluster_id, incarnation) = (progress.cluster_id.clone(), progress.incarnation);
                        self.place = (incarnation != 0).then_some(Place { cluster_id, incarnation });
                    }
                    match decode(message)? {
                        Some(event) => {
                            if let Event::Synced(revision) = event {
                                self.from = revision;
                            }
                            return Ok(event);
                        }
                        None => continue,
                    }
                }
                Ok(Ok(None)) => Status::unavailable("the stream ended"),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("the stream is silent"),
            };
            self.stream = None;
            self.interrupted(&status).await?;
        }
    }

    async fn open(&mut self) -> Result<Streaming<api::WatchResponse>, Status> {
        let (endpoint, channel) = self.client.preferred();
        self.endpoint = endpoint;
        let place = self.place.clone();
        let mut request = Request::new(api::WatchRequest {
            from_revision: self.from.0,
            incarnation: place.as_ref().map_or(0, |place| place.incarnation),
            cluster_id: place.map(|place| place.cluster_id).unwrap_or_default(),
        });
        self.client.identify(&mut request);
        let mut control = control(channel);
        match tokio::time::timeout(OPEN_TIMEOUT, control.watch(request)).await {
            Ok(answer) => {
                let answer = answer?;
                self.client.recognise(&self.endpoint, answer.metadata())?;
                Ok(answer.into_inner())
            }
            Err(_) => Err(Status::deadline_exceeded("the member does not open a watch")),
        }
    }

    async fn interrupted(&mut self, status: &Status) -> Result<(), ClientError> {
        tracing::debug!(endpoint = %self.endpoint, why = status_words(status), "watch interrupted");
        if advice(status) == Advice::GiveUp {
            return Err(ClientError::refused(status));
        }
        self.client.rotate(&self.endpoint);
        tokio::time::sleep(self.backoff.next_wait()).await;
        Ok(())
    }
}

/// `None` for a kind of event that this version does not know.
fn decode(message: api::WatchResponse) -> Result<Option<Event>, WireError> {
    let Some(event) = message.event else { return Ok(None) };
    Ok(Some(match event {
        watch_response::Event::NodePut(node) => Event::Node(Box::new(wire::node::decode(node)?)),
        watch_response::Event::NodeDeleted(name) => Event::NodeDeleted(wire::name("node_deleted", &name)?),
        watch_response::Event::VolumePut(volume) => Event::Volume(Box::new(wire::volume::decode(volume)?)),
        watch_response::Event::VolumeDeleted(deleted) => Event::VolumeDeleted {
            id: wire::uuid("volume_deleted.id", &deleted.id)?,
            name: wire::name("volume_deleted.name", &deleted.name)?,
        },
        watch_response::Event::SnapshotPut(snapshot) => {
            Event::Snapshot(Box::new(wire::snapshot::decode(snapshot)?))
        }
        watch_response::Event::SnapshotDeleted(deleted) => Event::SnapshotDeleted {
            id: wire::uuid("snapshot_deleted.id", &deleted.id)?,
            name: wire::name("snapshot_deleted.name", &deleted.name)?,
        },
        watch_response::Event::Reset(api::WatchReset {}) => Event::Reset,
        watch_response::Event::Progress(api::WatchProgress { .. }) => {
            Event::Synced(Revision(message.revision))
        }
    }))
}
