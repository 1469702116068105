//! The rule of every method: SPIRE's default policy and its limits, compiled in.

/// The rule of one method.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The path, such as `/spire.api.server.bundle.v1.Bundle/GetBundle`.
    pub(crate) method: &'static str,
    /// Who may call it.
    pub(crate) who: Who,
    /// Where it is served.
    pub(crate) listener: Listener,
    /// How often an address may call it.
    pub(crate) limit: Option<Limit>,
}

/// Who may call a method. Local callers are never agents, administrators or downstream servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Everybody, without a certificate too.
    Anybody,
    /// The server's own socket.
    Local,
    /// The same, and administrators.
    LocalOrAdmin,
    /// The same, and agents.
    LocalAdminOrAgent,
    /// Agents.
    Agent,
    /// Servers below this one.
    Downstream,
}

/// To whom a method is open, by its rule or by what the operator's policy says of a call.
#[expect(clippy::struct_excessive_bools, reason = "any of them may hold, and a policy names each")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    /// To everybody.
    pub(crate) anybody: bool,
    /// To the server's own socket.
    pub(crate) local: bool,
    /// To administrators.
    pub(crate) admins: bool,
    /// To servers below this one.
    pub(crate) downstream: bool,
    /// To agents.
    pub(crate) agents: bool,
}

impl Open {
    /// As the rule has it.
    pub(crate) const fn to(who: Who) -> Self {
        Self {
            anybody: matches!(who, Who::Anybody),
            local: matches!(who, Who::Local | Who::LocalOrAdmin | Who::LocalAdminOrAgent),
            admins: matches!(who, Who::LocalOrAdmin | Who::LocalAdminOrAgent),
            downstream: matches!(who, Who::Downstream),
            agents: matches!(who, Who::LocalAdminOrAgent | Who::Agent),
        }
    }
}

/// Where a service is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    /// On the server's own socket alone.
    Local,
    /// There and over TLS.
    Both,
}

/// What is counted per address; each has a bucket of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Limit {
    /// Attestations.
    Attestation,
    /// Certificates.
    X509Signing,
    /// JWT-SVIDs.
    JwtSigning,
    /// WIT-SVIDs.
    WitSigning,
    /// Keys published by servers below this one.
    PushKey,
    /// What agents say of themselves.
    PostStatus,
}

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup<'a> {
    /// A method.
    Method(&'static Rule),
    /// No method of a service that is there.
    UnknownMethod {
        /// The service.
        service: &'a str,
        /// What it does not have.
        method: &'a str,
    },
    /// No service that is served here.
    UnknownService(&'a str),
    /// No path of a method.
    Malformed,
}

/// Looks a path up among what is served at `local` or at the other listener.
pub(crate) fn look_up(path: &str, is_local: bool) -> Lookup<'_> {
    let Some((service, method)) = path.strip_prefix('/').unwrap_or(path).rsplit_once('/') else {
        return Lookup::Malformed;
    };
    let served = |rule: &Rule| is_local || rule.listener == Listener::Both;
    if path.starts_with('/')
        && let Ok(index) = RULES.binary_search_by(|rule| rule.method.cmp(path))
        && let Some(rule) = RULES.get(index)
        && served(rule)
    {
        return Lookup::Method(rule);
    }
    let of_service = |rule: &Rule| {
        let rest = rule.method.strip_prefix('/').and_then(|rest| rest.strip_prefix(service));
        rest.is_some_and(|rest| rest.starts_with('/'))
    };
    if RULES.iter().any(|rule| of_service(rule) && served(rule)) {
        Lookup::UnknownMethod { service, method }
    } else {
        Lookup::UnknownService(service)
    }
}

const fn rule(method: &'static str, who: Who, listener: Listener, limit: Option<Limit>) -> Rule {
    Rule { method, who, listener, limit }
}

/// In the order of the paths.
#[rustfmt::skip]
pub(crate) static RULES: &[Rule] = &[
    rule("/finial.explain.v1.Server/Explain", Who::Local, Listener::Local, None),
    rule("/finial.sync.v1.Sync/Watch", Who::Agent, Listener::Both, None),
    rule("/grpc.health.v1.Health/Check", Who::Local, Listener::Local, None),
    rule("/grpc.health.v1.Health/List", Who::Local, Listener::Local, None),
    rule("/grpc.health.v1.Health/Watch", Who::Local, Listener::Local, None),
    rule("/spire.api.server.agent.v1.Agent/AttestAgent", Who::Anybody, Listener::Both, Some(Limit::Attestation)),
    rule("/spire.api.server.agent.v1.Agent/BanAgent", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.agent.v1.Agent/CountAgents", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.agent.v1.Agent/CreateJoinToken", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.agent.v1.Agent/DeleteAgent", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.agent.v1.Agent/GetAgent", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.agent.v1.Agent/ListAgents", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.agent.v1.Agent/PostStatus", Who::Agent, Listener::Both, Some(Limit::PostStatus)),
    rule("/spire.api.server.agent.v1.Agent/RenewAgent", Who::Agent, Listener::Both, Some(Limit::X509Signing)),
    rule("/spire.api.server.bundle.v1.Bundle/AppendBundle", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.bundle.v1.Bundle/CountBundles", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.bundle.v1.Bundle/GetBundle", Who::Anybody, Listener::Both, None),
    rule("/spire.api.server.bundle.v1.Bundle/GetFederatedBundle", Who::LocalAdminOrAgent, Listener::Both, None),
    rule("/spire.api.server.bundle.v1.Bundle/ListFederatedBundles", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority", Who::Downstream, Listener::Both, Some(Limit::PushKey)),
    rule("/spire.api.server.bundle.v1.Bundle/PublishWITAuthority", Who::Downstream, Listener::Both, Some(Limit::PushKey)),
    rule("/spire.api.server.debug.v1.Debug/GetInfo", Who::Local, Listener::Local, None),
    rule("/spire.api.server.entry.v1.Entry/BatchCreateEntry", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.entry.v1.Entry/BatchUpdateEntry", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.entry.v1.Entry/CountEntries", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.entry.v1.Entry/GetAuthorizedEntries", Who::Agent, Listener::Both, None),
    rule("/spire.api.server.entry.v1.Entry/GetEntry", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.entry.v1.Entry/ListEntries", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries", Who::Agent, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.logger.v1.Logger/GetLogger", Who::Local, Listener::Local, None),
    rule("/spire.api.server.logger.v1.Logger/ResetLogLevel", Who::Local, Listener::Local, None),
    rule("/spire.api.server.logger.v1.Logger/SetLogLevel", Who::Local, Listener::Local, None),
    rule("/spire.api.server.svid.v1.SVID/BatchNewWITSVID", Who::Agent, Listener::Both, Some(Limit::WitSigning)),
    rule("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", Who::Agent, Listener::Both, Some(Limit::X509Signing)),
    rule("/spire.api.server.svid.v1.SVID/MintJWTSVID", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.svid.v1.SVID/MintWITSVID", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.svid.v1.SVID/MintX509SVID", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", Who::Downstream, Listener::Both, Some(Limit::X509Signing)),
    rule("/spire.api.server.svid.v1.SVID/NewJWTSVID", Who::Agent, Listener::Both, Some(Limit::JwtSigning)),
    rule("/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships", Who::LocalOrAdmin, Listener::Both, None),
    rule("/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle", Who::LocalOrAdmin, Listener::Both, None),
];

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/wire/authz.tsv"));

    #[test]
    fn the_rules_are_those_of_the_table() {
        let mut count = 0;
        for line in TABLE.lines().skip(1).filter(|line| !line.is_empty()) {
            let columns: Vec<&str> = line.split('\t').collect();
            let [method, who, listeners, limit] = columns[..] else { panic!("{line}") };
            let Lookup::Method(rule) = look_up(method, true) else { panic!("{method} has no rule") };
            assert_eq!(written_who(rule.who), who, "{method}");
            assert_eq!(written_listener(rule.listener), listeners, "{method}");
            assert_eq!(written_limit(rule.limit), limit, "{method}");
            count += 1;
        }

        assert_eq!(RULES.len(), count);
        assert!(RULES.is_sorted_by(|a, b| a.method < b.method));
    }

    const fn written_who(who: Who) -> &'static str {
        match who {
            Who::Anybody => "any",
            Who::Local => "local",
            Who::LocalOrAdmin => "local,admin",
            Who::LocalAdminOrAgent => "local,admin,agent",
            Who::Agent => "agent",
            Who::Downstream => "downstream",
        }
    }

    const fn written_listener(listener: Listener) -> &'static str {
        match listener {
            Listener::Local => "uds",
            Listener::Both => "tcp,uds",
        }
    }

    const fn written_limit(limit: Option<Limit>) -> &'static str {
        match limit {
            None => "none",
            Some(Limit::Attestation) => "attestation",
            Some(Limit::X509Signing | Limit::JwtSigning | Limit::WitSigning) => "signing",
            Some(Limit::PushKey) => "pushkey",
            Some(Limit::PostStatus) => "poststatus",
        }
    }

    #[test]
    fn paths_are_told_apart_as_grpc_does() {
        let entry = "spire.api.server.entry.v1.Entry";
        assert_eq!(look_up("/x", true), Lookup::Malformed);
        assert_eq!(look_up("/", true), Lookup::Malformed);
        assert_eq!(look_up("/x/", true), Lookup::UnknownService("x"));
        assert_eq!(look_up("//", true), Lookup::UnknownService(""));
        assert_eq!(
            look_up("/spire.api.server.entry.v1.Entry/Nope", false),
            Lookup::UnknownMethod { service: entry, method: "Nope" }
        );
        assert_eq!(
            look_up("/spire.api.server.entry.v1.entry/GetEntry", true),
            Lookup::UnknownService("spire.api.server.entry.v1.entry")
        );
        assert_eq!(
            look_up("/spire.api.server.debug.v1.Debug/GetInfo", false),
            Lookup::UnknownService("spire.api.server.debug.v1.Debug")
        );
        assert!(matches!(look_up("/spire.api.server.debug.v1.Debug/GetInfo", true), Lookup::Method(_)));
    }
}
