//! Membership: certificates (who belongs, in which roles, until when) and the tickets that lead to one.
//!
//! A node shows a [`Credential`]: its certificate and those of its issuers, up to one signed by the mesh key. A ticket is
//! a bearer token: the node that made it (an admin) issues the certificate when the newcomer calls. Nothing here dials.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cbor;
use crate::identity::{Domain, Identity, Signature, verify};
use crate::ids::{MeshId, NodeId, decode_base32, encode_base32};

/// Longest chain from a node to the mesh key: admins who invited admins. Bounds what a peer can make us verify.
pub const CHAIN_LEN_MAX: usize = 8;
/// How far two members' clocks may differ before a fresh certificate is refused.
pub const CLOCK_SKEW_MS: u64 = 5 * 60 * 1000;
/// Most bootstrap addresses in a ticket: it should stay short enough to paste.
pub const TICKET_ADDRS_MAX: usize = 8;

/// A set of roles.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Roles(u8);

impl Roles {
    /// May execute tasks, serve blobs, be a steward.
    pub const RUN: Self = Self(1);
    /// May submit jobs and cancel its own.
    pub const SUBMIT: Self = Self(2);
    /// May invite, revoke and cancel anything.
    pub const ADMIN: Self = Self(4);
    /// Every role.
    pub const ALL: Self = Self(7);

    const NAMES: [(Self, &'static str); 3] = [(Self::RUN, "run"), (Self::SUBMIT, "submit"), (Self::ADMIN, "admin")];

    /// Whether every role of `other` is in `self`.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Self::NAMES.iter().filter(|(r, _)| self.contains(*r)).map(|(_, n)| *n).collect();
        f.write_str(&names.join(","))
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roles({self})")
    }
}

/// A role name that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("role `{0}` does not exist: use run, submit or admin, separated by commas")]
pub struct UnknownRole(pub String);

impl FromStr for Roles {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',').map(str::trim).try_fold(Self::default(), |set, name| {
            Self::NAMES
                .iter()
                .find(|(_, n)| *n == name)
                .map(|(role, _)| set.union(*role))
                .ok_or_else(|| UnknownRole(name.to_owned()))
        })
    }
}

/// What a certificate says, before its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateBody {
    /// The mesh it is for.
    pub mesh: MeshId,
    /// The member.
    pub node: NodeId,
    /// What the member may do.
    pub roles: Roles,
    /// Unix ms when it was issued.
    pub issued_ms: u64,
    /// Unix ms after which it is worthless.
    pub expires_ms: u64,
}

/// One signed certificate. The issuer is the holder of the next certificate in the chain, or the mesh key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// What is certified.
    pub body: CertificateBody,
    /// The issuer's signature over the body's CBOR, domain [`Domain::Certificate`].
    pub signature: Signature,
}

/// A member's proof: its own certificate first, each signed by the next one's holder, the last by the mesh key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// The chain, member first.
    pub chain: Vec<Certificate>,
}

/// Why a credential was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The chain is empty or longer than [`CHAIN_LEN_MAX`].
    #[error("the certificate chain has {0} links; 1 to {CHAIN_LEN_MAX} are accepted")]
    Length(usize),
    /// It is for another mesh.
    #[error("the certificate is for mesh {found}, this node is in mesh {expected}")]
    OtherMesh {
        /// The certificate's mesh.
        found: MeshId,
        /// Ours.
        expected: MeshId,
    },
    /// It names another node than the one that shows it.
    #[error("the certificate is for node {found}, but {expected} shows it")]
    OtherNode {
        /// The certificate's node.
        found: NodeId,
        /// The node that shows it.
        expected: NodeId,
    },
    /// A link is past its expiry.
    #[error("the certificate of {node} expired at {expires_ms} ms (unix time); ask an admin for a new invite")]
    Expired {
        /// Whose.
        node: NodeId,
        /// When.
        expires_ms: u64,
    },
    /// A link was issued in the future.
    #[error("the certificate of {node} was issued in the future; check both hosts' clocks")]
    NotYet {
        /// Whose.
        node: NodeId,
    },
    /// A link was issued by a node without the admin role.
    #[error("the certificate of {node} was issued by {issuer}, which is not an admin")]
    IssuerNotAdmin {
        /// Whose.
        node: NodeId,
        /// By whom.
        issuer: NodeId,
    },
    /// A signature in the chain is wrong.
    #[error("the certificate of {node} is forged: its signature does not verify")]
    Forged {
        /// Whose.
        node: NodeId,
    },
}

impl Credential {
    /// The founder's credential: every role, signed by the mesh key itself.
    #[must_use]
    pub fn found(mesh_key: &Identity, node: NodeId, now_ms: u64, expires_ms: u64) -> Self {
        let body =
            CertificateBody { mesh: MeshId(mesh_key.id().0), node, roles: Roles::ALL, issued_ms: now_ms, expires_ms };
        Self { chain: vec![sign_body(mesh_key, body)] }
    }

    /// A certificate for `node`, issued by `issuer`, whose own credential `self` is. The caller checks that `self` holds
    /// the admin role; receivers do too.
    #[must_use]
    pub fn issue(&self, issuer: &Identity, node: NodeId, roles: Roles, now_ms: u64, expires_ms: u64) -> Self {
        let body = CertificateBody { mesh: self.mesh(), node, roles, issued_ms: now_ms, expires_ms };
        let mut chain = vec![sign_body(issuer, body)];
        chain.extend(self.chain.iter().cloned());
        Self { chain }
    }

    /// The mesh it claims to be for (unverified).
    #[must_use]
    pub fn mesh(&self) -> MeshId {
        self.chain.first().map_or(MeshId([0; 32]), |c| c.body.mesh)
    }

    /// The roles it claims (unverified).
    #[must_use]
    pub fn roles(&self) -> Roles {
        self.chain.first().map_or(Roles::default(), |c| c.body.roles)
    }

    /// The member it names (unverified).
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        self.chain.first().map(|c| c.body.node)
    }

    /// Verifies the whole chain for `mesh`, shown by `node`, at `now_ms`, and returns the member's roles.
    ///
    /// # Errors
    /// [`CredentialError`], naming the first link that fails.
    pub fn verify(&self, mesh: MeshId, node: NodeId, now_ms: u64) -> Result<Roles, CredentialError> {
        let len = self.chain.len();
        let Some(first) = self.chain.first().filter(|_| len <= CHAIN_LEN_MAX) else {
            return Err(CredentialError::Length(len));
        };
        if first.body.node != node {
            return Err(CredentialError::OtherNode { found: first.body.node, expected: node });
        }
        for (i, link) in self.chain.iter().enumerate() {
            let body = &link.body;
            if body.mesh != mesh {
                return Err(CredentialError::OtherMesh { found: body.mesh, expected: mesh });
            }
            let issuer = match self.chain.get(i + 1) {
                None => mesh.0,
                Some(next) if next.body.roles.contains(Roles::ADMIN) => next.body.node.0,
                Some(next) => return Err(CredentialError::IssuerNotAdmin { node: body.node, issuer: next.body.node }),
            };
            verify(&issuer, Domain::Certificate, &cbor::to_vec(body), &link.signature)
                .map_err(|_| CredentialError::Forged { node: body.node })?;
            if body.expires_ms <= now_ms {
                return Err(CredentialError::Expired { node: body.node, expires_ms: body.expires_ms });
            }
            if body.issued_ms > now_ms + CLOCK_SKEW_MS {
                return Err(CredentialError::NotYet { node: body.node });
            }
        }
        Ok(first.body.roles)
    }
}

fn sign_body(issuer: &Identity, body: CertificateBody) -> Certificate {
    let signature = issuer.sign(Domain::Certificate, &cbor::to_vec(&body));
    Certificate { body, signature }
}

/// What a ticket says, before its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketBody {
    /// The mesh to join.
    pub mesh: MeshId,
    /// The mesh's name, for people.
    pub name: String,
    /// The admin who made it, and who will issue the certificate.
    pub issuer: NodeId,
    /// Where the issuer can be dialled (multiaddrs without the `/p2p` part), and then some other members (with it).
    pub addrs: Vec<String>,
    /// The roles it leads to.
    pub roles: Roles,
    /// Unix ms after which it is refused.
    pub expires_ms: u64,
}

/// An invitation: a signed [`TicketBody`], printed as one word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// What it grants.
    pub body: TicketBody,
    /// The issuer's signature, domain [`Domain::Ticket`].
    pub signature: Signature,
}

/// Why a ticket's text or signature was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It does not begin as tickets do.
    #[error("this is not a ticket: it should begin with `{TICKET_PREFIX}`; copy it whole from `sinew invite`")]
    Prefix,
    /// It is cut off or damaged.
    #[error("the ticket is truncated or damaged; copy it whole from `sinew invite`")]
    Damaged,
    /// Its signature is wrong.
    #[error("the ticket is forged: its signature does not verify")]
    Forged,
    /// It is too old.
    #[error("the ticket expired at {0} ms (unix time); ask an admin for a new one (`sinew invite`)")]
    Expired(u64),
}

const TICKET_PREFIX: &str = "sinew1";
const TICKET_CHECK_LEN: usize = 4;

impl Ticket {
    /// Signs a ticket as `issuer`.
    #[must_use]
    pub fn sign(issuer: &Identity, body: TicketBody) -> Self {
        let signature = issuer.sign(Domain::Ticket, &cbor::to_vec(&body));
        Self { body, signature }
    }

    /// Checks the issuer's signature and the expiry.
    ///
    /// # Errors
    /// [`TicketError::Forged`] or [`TicketError::Expired`].
    pub fn verify(&self, now_ms: u64) -> Result<(), TicketError> {
        verify(self.body.issuer.as_bytes(), Domain::Ticket, &cbor::to_vec(&self.body), &self.signature)
            .map_err(|_| TicketError::Forged)?;
        if self.body.expires_ms <= now_ms { Err(TicketError::Expired(self.body.expires_ms)) } else { Ok(()) }
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = cbor::to_vec(self);
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..TICKET_CHECK_LEN]);
        write!(f, "{TICKET_PREFIX}{}", encode_base32(&bytes))
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let body = text.trim().strip_prefix(TICKET_PREFIX).ok_or(TicketError::Prefix)?;
        let bytes = decode_base32(body).map_err(|_| TicketError::Damaged)?;
        let cut = bytes.len().checked_sub(TICKET_CHECK_LEN).ok_or(TicketError::Damaged)?;
        let (payload, check) = bytes.split_at(cut);
        if blake3::hash(payload).as_bytes()[..TICKET_CHECK_LEN] != *check {
            return Err(TicketError::Damaged);
        }
        cbor::from_slice(payload).map_err(|_| TicketError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000_000;
    const LATER: u64 = NOW + 1_000;

    fn who(seed: u8) -> Identity {
        Identity::from_seed([seed; 32])
    }

    #[test]
    fn chains_verify_and_every_damage_is_named() {
        let (mesh, admin, guest) = (who(1), who(2), who(3));
        let mesh_id = MeshId(mesh.id().0);
        let founder = Credential::found(&mesh, admin.id(), NOW, LATER);
        assert_eq!(founder.verify(mesh_id, admin.id(), NOW), Ok(Roles::ALL));
        let member = founder.issue(&admin, guest.id(), Roles::RUN, NOW, LATER);
        assert_eq!(member.verify(mesh_id, guest.id(), NOW), Ok(Roles::RUN));

        assert!(matches!(member.verify(mesh_id, admin.id(), NOW), Err(CredentialError::OtherNode { .. })));
        assert!(matches!(member.verify(MeshId([9; 32]), guest.id(), NOW), Err(CredentialError::OtherMesh { .. })));
        assert!(matches!(member.verify(mesh_id, guest.id(), LATER), Err(CredentialError::Expired { .. })));
        let by_guest = member.issue(&guest, who(4).id(), Roles::RUN, NOW, LATER);
        assert!(matches!(by_guest.verify(mesh_id, who(4).id(), NOW), Err(CredentialError::IssuerNotAdmin { .. })));
        let mut forged = member.clone();
        forged.chain[0].body.roles = Roles::ALL;
        assert!(matches!(forged.verify(mesh_id, guest.id(), NOW), Err(CredentialError::Forged { .. })));
        let early = founder.issue(&admin, guest.id(), Roles::RUN, NOW + CLOCK_SKEW_MS + 1, NOW * 2);
        assert!(matches!(early.verify(mesh_id, guest.id(), NOW), Err(CredentialError::NotYet { .. })));
        assert!(matches!(
            Credential { chain: vec![] }.verify(mesh_id, guest.id(), NOW),
            Err(CredentialError::Length(0))
        ));
    }

    #[test]
    fn tickets_survive_printing_and_no_damage() {
        let body = TicketBody {
            mesh: MeshId([1; 32]),
            name: "lab".into(),
            issuer: who(2).id(),
            addrs: vec!["/ip4/127.0.0.1/tcp/9000".into()],
            roles: Roles::RUN.union(Roles::SUBMIT),
            expires_ms: LATER,
        };
        let ticket = Ticket::sign(&who(2), body);
        let text = ticket.to_string();
        assert_eq!(text.parse::<Ticket>().as_ref(), Ok(&ticket));
        assert_eq!(ticket.verify(NOW), Ok(()));
        assert_eq!(ticket.verify(LATER), Err(TicketError::Expired(LATER)));
        assert_eq!(text[..text.len() - 5].parse::<Ticket>(), Err(TicketError::Damaged));
        assert_eq!("hello".parse::<Ticket>(), Err(TicketError::Prefix));
        let mut forged = ticket;
        forged.body.roles = Roles::ALL;
        assert_eq!(forged.verify(NOW), Err(TicketError::Forged));
    }

    #[test]
    fn roles_print_and_parse() {
        assert_eq!("run, admin".parse::<Roles>().map(|r| r.to_string()), Ok("run,admin".into()));
        assert_eq!("root".parse::<Roles>(), Err(UnknownRole("root".into())));
    }
}
