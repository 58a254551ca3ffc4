//! Members of the control plane.

use anyhow::{Context, ensure};
use basalt_client::{Client, MemberRole, Mutation, NewMember};
use basalt_model::{FeatureLevel, MemberId};
use clap::Subcommand;
use serde_json::json;

use crate::output::{Format, print_json, print_line, print_table, table};

#[derive(Debug, Subcommand)]
pub(crate) enum MembersCommand {
    /// List them
    List,
    /// Let a new member in; start its process with an empty directory
    Add(NewMemberArguments),
    /// Take a member out for good
    Remove {
        /// Its id
        id: u64,
    },
    /// Take one member out and a new one in, as soon as that one has caught up
    Replace {
        /// The id of the member that goes
        old: u64,
        #[command(flatten)]
        new: NewMemberArguments,
    },
    /// Use what a newer version brings, once all members and daemons are upgraded; there is no way back
    RaiseLevel {
        /// The feature level
        level: u32,
    },
    /// Make another member the leader
    Transfer {
        /// Its id; without it, the one that is furthest
        to: Option<u64>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct NewMemberArguments {
    /// The new id, never used before
    id: u64,
    /// Where other members reach it
    #[arg(long, value_name = "HOST:PORT")]
    peer_address: String,
    /// Where clients and daemons reach it
    #[arg(long, value_name = "HOST:PORT")]
    api_address: String,
}

/// Carries out one of the commands.
pub(crate) async fn run(client: &Client, command: MembersCommand, format: Format) -> anyhow::Result<()> {
    let request = Mutation::once(None).request;
    let (revision, said) = match command {
        MembersCommand::List => return list(client, format).await,
        MembersCommand::Add(new) => {
            let new = new.member()?;
            let revision = client.add_member(&request, &new).await?;
            (revision, format!("member {} is let in as soon as it runs with an empty directory", new.id))
        }
        MembersCommand::Remove { id } => {
            let id = member_id(id)?;
            // The control plane is content when a member is out already; whoever types an id wants to know.
            let known = client.list_members().await?.members;
            ensure!(
                known.iter().any(|member| member.id == id),
                "there is no member {id}; `kubectl basalt members` lists them"
            );
            (client.remove_member(&request, id).await?, format!("member {id} is being taken out"))
        }
        MembersCommand::Replace { old, new } => {
            let (old, new) = (member_id(old)?, new.member()?);
            let revision = client.replace_member(&request, old, &new).await?;
            (revision, format!("member {} takes the place of {old} once it has caught up", new.id))
        }
        MembersCommand::RaiseLevel { level } => {
            let revision = client.set_feature_level(&request, FeatureLevel(level)).await?;
            (revision, format!("the cluster is at feature level {level}"))
        }
        MembersCommand::Transfer { to } => {
            let to = client.transfer_leadership(to.map(member_id).transpose()?).await?;
            return match format {
                Format::Json => print_json(&json!({ "to": to })),
                Format::Table => {
                    print_line(&format!("the leadership goes to member {to}"));
                    Ok(())
                }
            };
        }
    };
    match format {
        Format::Json => print_json(&json!({ "revision": revision })),
        Format::Table => {
            print_line(&said);
            Ok(())
        }
    }
}

async fn list(client: &Client, format: Format) -> anyhow::Result<()> {
    let info = client.list_members().await?;
    if format == Format::Json {
        let members = info.members.iter().map(|member| {
            json!({ "id": member.id, "role": role(member.role), "peerAddress": member.peer_address,
                "apiAddress": member.api_address, "disk": member.disk, "version": member.version,
                "matched": member.matched, "lag": member.lag, "active": member.active })
        });
        return print_json(&json!({
            "members": members.collect::<Vec<_>>(), "leader": info.leader, "term": info.term,
        }));
    }
    let mut shown = table(["id", "role", "active", "lag", "api address", "peer address", "version"]);
    for member in &info.members {
        let known = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
        shown.add_row([
            member.id.to_string(),
            role(member.role).to_owned(),
            known(member.active.map(|active| if active { "yes" } else { "no" }.to_owned())),
            known(member.lag.map(|lag| lag.to_string())),
            member.api_address.clone(),
            member.peer_address.clone(),
            member.version.clone(),
        ]);
    }
    print_table(&shown, "there are no members");
    Ok(())
}

impl NewMemberArguments {
    fn member(self) -> anyhow::Result<NewMember> {
        Ok(NewMember {
            id: member_id(self.id)?,
            peer_address: self.peer_address,
            api_address: self.api_address,
        })
    }
}

fn member_id(id: u64) -> anyhow::Result<MemberId> {
    MemberId::new(id).context("a member id is greater than 0")
}

fn role(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Leader => "Leader",
        MemberRole::Voter => "Voter",
        MemberRole::Learner => "Learner",
        MemberRole::Waiting => "Waiting",
    }
}
