//! SPIRE's schema, version 25, to the letter.
//!
//! `SQLite` keeps the text of a definition, so there the texts are SPIRE's. The other databases keep what
//! it means, which is written from [`TABLES`].

use crate::dialect::Dialect;

/// The schema version this code writes.
pub(crate) const VERSION: i64 = 25;

/// The oldest schema version that is migrated.
pub(crate) const OLDEST: i64 = 23;

/// The tables in SPIRE's order of creation.
const SQLITE_TABLES: &[&str] = &[
    r#"CREATE TABLE "federated_registration_entries" ("bundle_id" integer,"registered_entry_id" integer, PRIMARY KEY ("bundle_id","registered_entry_id"))"#,
    r#"CREATE TABLE "bundles" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"trust_domain" varchar(255) NOT NULL,"data" blob )"#,
    r#"CREATE UNIQUE INDEX uix_bundles_trust_domain ON "bundles"(trust_domain) "#,
    r#"CREATE TABLE "attested_node_entries" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"spiffe_id" varchar(255),"data_type" varchar(255),"serial_number" varchar(255),"expires_at" datetime,"new_serial_number" varchar(255),"new_expires_at" datetime,"can_reattest" bool,"agent_version" varchar(255) )"#,
    r#"CREATE INDEX idx_attested_node_entries_expires_at ON "attested_node_entries"(expires_at) "#,
    r#"CREATE UNIQUE INDEX uix_attested_node_entries_spiffe_id ON "attested_node_entries"(spiffe_id) "#,
    r#"CREATE TABLE "attested_node_entries_events" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"spiffe_id" varchar(255) )"#,
    r#"CREATE TABLE "node_resolver_map_entries" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"spiffe_id" varchar(255),"type" varchar(255),"value" varchar(255) )"#,
    r#"CREATE UNIQUE INDEX idx_node_resolver_map ON "node_resolver_map_entries"(spiffe_id, "type", "value") "#,
    r#"CREATE TABLE "registered_entries" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"entry_id" varchar(255),"spiffe_id" varchar(255),"parent_id" varchar(255),"ttl" integer,"admin" bool,"downstream" bool,"expiry" bigint,"revision_number" bigint,"store_svid" bool,"hint" varchar(255),"jwt_svid_ttl" integer,"additional_attributes" blob )"#,
    r#"CREATE INDEX idx_registered_entries_parent_id ON "registered_entries"(parent_id) "#,
    r#"CREATE INDEX idx_registered_entries_expiry ON "registered_entries"("expiry") "#,
    r#"CREATE INDEX idx_registered_entries_hint ON "registered_entries"("hint") "#,
    r#"CREATE INDEX idx_registered_entries_spiffe_id ON "registered_entries"(spiffe_id) "#,
    r#"CREATE UNIQUE INDEX uix_registered_entries_entry_id ON "registered_entries"(entry_id) "#,
    r#"CREATE TABLE "registered_entries_events" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"entry_id" varchar(255) )"#,
    r#"CREATE TABLE "join_tokens" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"token" varchar(255),"expiry" bigint )"#,
    r#"CREATE UNIQUE INDEX uix_join_tokens_token ON "join_tokens"("token") "#,
    r#"CREATE TABLE "selectors" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"registered_entry_id" integer,"type" varchar(255),"value" varchar(255) )"#,
    r#"CREATE INDEX idx_selectors_type_value ON "selectors"("type", "value") "#,
    r#"CREATE UNIQUE INDEX idx_selector_entry ON "selectors"(registered_entry_id, "type", "value") "#,
    r#"CREATE TABLE "migrations" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"version" integer,"code_version" varchar(255) )"#,
    r#"CREATE TABLE "dns_names" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"registered_entry_id" integer,"value" varchar(255) )"#,
    r#"CREATE UNIQUE INDEX idx_dns_entry ON "dns_names"(registered_entry_id, "value") "#,
    r#"CREATE TABLE "federated_trust_domains" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"trust_domain" varchar(255) NOT NULL,"bundle_endpoint_url" varchar(255),"bundle_endpoint_profile" varchar(255),"endpoint_spiffe_id" varchar(255),"implicit" bool )"#,
    r#"CREATE UNIQUE INDEX uix_federated_trust_domains_trust_domain ON "federated_trust_domains"(trust_domain) "#,
    r#"CREATE TABLE "ca_journals" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"data" blob,"active_x509_authority_id" varchar(255),"active_jwt_authority_id" varchar(255) )"#,
    r#"CREATE INDEX idx_ca_journals_active_x509_authority_id ON "ca_journals"(active_x509_authority_id) "#,
    r#"CREATE INDEX idx_ca_journals_active_jwt_authority_id ON "ca_journals"(active_jwt_authority_id) "#,
    r#"CREATE INDEX idx_federated_registration_entries_registered_entry_id ON "federated_registration_entries"(registered_entry_id) "#,
];

/// What creates everything, in SPIRE's order.
pub(crate) fn creation(dialect: Dialect) -> Vec<String> {
    if dialect == Dialect::Sqlite {
        return SQLITE_TABLES.iter().map(|&text| text.to_owned()).collect();
    }
    let mut all = Vec::new();
    for table in TABLES {
        all.push(table.definition(dialect));
        all.extend(table.indexes.iter().map(|index| index.definition(table.name, dialect)));
    }
    all
}

/// The table and column that a version added, and what adds it.
pub(crate) fn added_in(version: i64, dialect: Dialect) -> (&'static str, &'static str, String) {
    let (table, column, kind) = if version == 24 {
        ("attested_node_entries", "agent_version", Kind::Str)
    } else {
        ("registered_entries", "additional_attributes", Kind::Blob)
    };
    let add = match dialect {
        Dialect::Sqlite => {
            format!(r#"ALTER TABLE "{table}" ADD COLUMN "{column}" {}"#, kind.name(dialect))
        }
        Dialect::Postgres | Dialect::MySql => {
            format!("ALTER TABLE {table} ADD COLUMN {column} {}", kind.name(dialect))
        }
    };
    (table, column, add)
}

struct Table {
    name: &'static str,
    /// Whether it starts with the three columns that most have.
    has_id: bool,
    columns: &'static [(&'static str, Kind)],
    indexes: &'static [Index],
}

#[derive(Clone, Copy)]
enum Kind {
    /// A text.
    Str,
    /// A text that must be there.
    Name,
    Bool,
    Int,
    Big,
    At,
    Blob,
    /// The id of another table's row.
    Row,
}

enum Index {
    Unique(&'static str, &'static str),
    Plain(&'static str, &'static str),
}

impl Table {
    fn definition(&self, dialect: Dialect) -> String {
        let quoted = |name: &str| match dialect {
            Dialect::MySql => format!("`{name}`"),
            Dialect::Sqlite | Dialect::Postgres => format!("\"{name}\""),
        };
        let mut parts = Vec::new();
        if self.has_id {
            let id = if dialect == Dialect::MySql { "int unsigned AUTO_INCREMENT" } else { "serial" };
            parts.push(format!("{} {id}", quoted("id")));
            parts.extend(
                ["created_at", "updated_at"].map(|name| format!("{name} {}", Kind::At.name(dialect))),
            );
        }
        for (name, kind) in self.columns {
            parts.push(format!("{} {}", quoted(name), kind.name(dialect)));
        }
        let key = if self.has_id { "id" } else { "bundle_id, registered_entry_id" };
        parts.push(format!("PRIMARY KEY ({key})"));
        let end = if dialect == Dialect::MySql {
            " ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"
        } else {
            ""
        };
        format!("CREATE TABLE {} ({}){end}", quoted(self.name), parts.join(", "))
    }
}

impl Kind {
    const fn name(self, dialect: Dialect) -> &'static str {
        match (self, dialect) {
            (Self::Str, Dialect::Postgres) => "text",
            (Self::Str, Dialect::Sqlite | Dialect::MySql) => "varchar(255)",
            (Self::Name, Dialect::Postgres) => "text NOT NULL",
            (Self::Name, Dialect::Sqlite | Dialect::MySql) => "varchar(255) NOT NULL",
            (Self::Bool, Dialect::Sqlite) => "bool",
            (Self::Bool, Dialect::Postgres | Dialect::MySql) => "boolean",
            (Self::Int, Dialect::MySql) => "int",
            (Self::Row, Dialect::MySql) => "int unsigned",
            (Self::Int | Self::Row, Dialect::Sqlite | Dialect::Postgres) => "integer",
            (Self::Big, _) => "bigint",
            (Self::At, Dialect::Sqlite) => "datetime",
            (Self::At, Dialect::Postgres) => "timestamp with time zone",
            (Self::At, Dialect::MySql) => "DATETIME NULL",
            (Self::Blob, Dialect::Sqlite) => "blob",
            (Self::Blob, Dialect::Postgres) => "bytea",
            (Self::Blob, Dialect::MySql) => "longblob",
        }
    }
}

impl Index {
    fn definition(&self, table: &str, dialect: Dialect) -> String {
        let (unique, name, columns) = match self {
            Self::Unique(name, columns) => ("UNIQUE ", name, columns),
            Self::Plain(name, columns) => ("", name, columns),
        };
        let quote = if dialect == Dialect::MySql { '`' } else { '"' };
        let columns: Vec<String> =
            columns.split(' ').map(|column| format!("{quote}{column}{quote}")).collect();
        format!("CREATE {unique}INDEX {name} ON {table} ({})", columns.join(", "))
    }
}

const TABLES: &[Table] = &[
    Table {
        name: "federated_registration_entries",
        has_id: false,
        columns: &[("bundle_id", Kind::Row), ("registered_entry_id", Kind::Row)],
        indexes: &[Index::Plain(
            "idx_federated_registration_entries_registered_entry_id",
            "registered_entry_id",
        )],
    },
    Table {
        name: "bundles",
        has_id: true,
        columns: &[("trust_domain", Kind::Name), ("data", Kind::Blob)],
        indexes: &[Index::Unique("uix_bundles_trust_domain", "trust_domain")],
    },
    Table {
        name: "attested_node_entries",
        has_id: true,
        columns: &[
            ("spiffe_id", Kind::Str),
            ("data_type", Kind::Str),
            ("serial_number", Kind::Str),
            ("expires_at", Kind::At),
            ("new_serial_number", Kind::Str),
            ("new_expires_at", Kind::At),
            ("can_reattest", Kind::Bool),
            ("agent_version", Kind::Str),
        ],
        indexes: &[
            Index::Unique("uix_attested_node_entries_spiffe_id", "spiffe_id"),
            Index::Plain("idx_attested_node_entries_expires_at", "expires_at"),
        ],
    },
    Table {
        name: "attested_node_entries_events",
        has_id: true,
        columns: &[("spiffe_id", Kind::Str)],
        indexes: &[],
    },
    Table {
        name: "node_resolver_map_entries",
        has_id: true,
        columns: &[("spiffe_id", Kind::Str), ("type", Kind::Str), ("value", Kind::Str)],
        indexes: &[Index::Unique("idx_node_resolver_map", "spiffe_id type value")],
    },
    Table {
        name: "registered_entries",
        has_id: true,
        columns: &[
            ("entry_id", Kind::Str),
            ("spiffe_id", Kind::Str),
            ("parent_id", Kind::Str),
            ("ttl", Kind::Int),
            ("admin", Kind::Bool),
            ("downstream", Kind::Bool),
            ("expiry", Kind::Big),
            ("revision_number", Kind::Big),
            ("store_svid", Kind::Bool),
            ("hint", Kind::Str),
            ("jwt_svid_ttl", Kind::Int),
            ("additional_attributes", Kind::Blob),
        ],
        indexes: &[
            Index::Unique("uix_registered_entries_entry_id", "entry_id"),
            Index::Plain("idx_registered_entries_spiffe_id", "spiffe_id"),
            Index::Plain("idx_registered_entries_parent_id", "parent_id"),
            Index::Plain("idx_registered_entries_expiry", "expiry"),
            Index::Plain("idx_registered_entries_hint", "hint"),
        ],
    },
    Table {
        name: "registered_entries_events",
        has_id: true,
        columns: &[("entry_id", Kind::Str)],
        indexes: &[],
    },
    Table {
        name: "join_tokens",
        has_id: true,
        columns: &[("token", Kind::Str), ("expiry", Kind::Big)],
        indexes: &[Index::Unique("uix_join_tokens_token", "token")],
    },
    Table {
        name: "selectors",
        has_id: true,
        columns: &[("registered_entry_id", Kind::Row), ("type", Kind::Str), ("value", Kind::Str)],
        indexes: &[
            Index::Unique("idx_selector_entry", "registered_entry_id type value"),
            Index::Plain("idx_selectors_type_value", "type value"),
        ],
    },
    Table {
        name: "migrations",
        has_id: true,
        columns: &[("version", Kind::Int), ("code_version", Kind::Str)],
        indexes: &[],
    },
    Table {
        name: "dns_names",
        has_id: true,
        columns: &[("registered_entry_id", Kind::Row), ("value", Kind::Str)],
        indexes: &[Index::Unique("idx_dns_entry", "registered_entry_id value")],
    },
    Table {
        name: "federated_trust_domains",
        has_id: true,
        columns: &[
            ("trust_domain", Kind::Name),
            ("bundle_endpoint_url", Kind::Str),
            ("bundle_endpoint_profile", Kind::Str),
            ("endpoint_spiffe_id", Kind::Str),
            ("implicit", Kind::Bool),
        ],
        indexes: &[Index::Unique("uix_federated_trust_domains_trust_domain", "trust_domain")],
    },
    Table {
        name: "ca_journals",
        has_id: true,
        columns: &[
            ("data", Kind::Blob),
            ("active_x509_authority_id", Kind::Str),
            ("active_jwt_authority_id", Kind::Str),
        ],
        indexes: &[
            Index::Plain("idx_ca_journals_active_x509_authority_id", "active_x509_authority_id"),
            Index::Plain("idx_ca_journals_active_jwt_authority_id", "active_jwt_authority_id"),
        ],
    },
];
