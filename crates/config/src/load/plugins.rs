//! The plugins section: blocks in the order of the file.

use std::collections::BTreeMap;

use crate::hcl::view::{self, Entry, View};
use crate::hcl::{self, Body, HclError, Kept};
use crate::raw::shared::Plugin;
use crate::{PluginBlock, PluginData};

/// Whether the file has the section.
pub(super) fn is_there(body: &Body) -> bool {
    section(body).is_some()
}

/// The blocks of the section. Of a repeated section, the first counts.
pub(super) fn read(body: &Body) -> Result<Vec<PluginBlock>, String> {
    let Some(section) = section(body) else { return Ok(Vec::new()) };
    let View::Items(items) = &section else {
        let kind = section.kind();
        return Err(format!("expected plugins node type *ast.ObjectList but got {kind}"));
    };
    let order = order(items);
    for (index, (kind, name)) in order.iter().enumerate() {
        if order.iter().take(index).any(|other| other == &(*kind, *name)) {
            return Err(format!("plugin {kind:?}/{name:?} declared more than once"));
        }
    }
    let decoded = decode(&section).map_err(|error| format!("failed to decode plugins config: {error}"))?;
    let count: usize = decoded.iter().map(|types| types.values().map(BTreeMap::len).sum::<usize>()).sum();
    if count != order.len() {
        return Err(format!("bug: expected {} plugins but got {count}", order.len()));
    }
    order
        .into_iter()
        .map(|(kind, name)| {
            let found = decoded.iter().find_map(|types| types.get(kind)?.get(name));
            let plugin =
                found.ok_or_else(|| format!("bug: plugin config for {kind:?}/{name:?} not located"))?;
            block(kind, name, plugin)
                .map_err(|why| format!("failed to create plugin config for {kind:?}/{name:?}: {why}"))
        })
        .collect()
}

fn section(body: &Body) -> Option<View<'_>> {
    view::field(&view::entries(body), "plugins").into_iter().next()
}

/// Types and names, from the outside in: each first two keys on a way down name a plugin.
fn order<'a>(items: &[Entry<'a>]) -> Vec<(&'a str, &'a str)> {
    let mut found = Vec::new();
    for entry in items {
        match entry.keys {
            [kind, name, ..] => found.push((kind.name.as_str(), name.name.as_str())),
            [kind] => {
                let mut names = Vec::new();
                first_keys(&entry.item.value, &mut names);
                found.extend(names.into_iter().map(|name| (kind.name.as_str(), name)));
            }
            [] => {}
        }
    }
    found
}

fn first_keys<'a>(node: &'a hcl::Node, found: &mut Vec<&'a str>) {
    match node {
        hcl::Node::Object { body, .. } => {
            found.extend(body.items.iter().filter_map(|item| item.keys.first()).map(|key| key.name.as_str()));
        }
        hcl::Node::List { nodes, .. } => nodes.iter().for_each(|node| first_keys(node, found)),
        hcl::Node::Literal(_) => {}
    }
}

type Plugins = Vec<BTreeMap<String, BTreeMap<String, Plugin>>>;

fn decode(section: &View<'_>) -> Result<Plugins, HclError> {
    hcl::from_view(section.clone())
}

fn block(kind: &str, name: &str, plugin: &Plugin) -> Result<PluginBlock, &'static str> {
    let data = match (&plugin.plugin_data, &plugin.plugin_data_file) {
        (Some(_), Some(_)) => return Err("only one of [plugin_data, plugin_data_file] can be used"),
        (None, Some(path)) => PluginData::File(path.into()),
        (Some(Kept::Items(_, text) | Kept::Other(text)), None) if !text.is_empty() => {
            PluginData::Inline(text.clone())
        }
        (_, None) => PluginData::Absent,
    };
    Ok(PluginBlock {
        kind: kind.to_owned(),
        name: name.to_owned(),
        command: plugin.plugin_cmd.clone(),
        args: plugin.plugin_args.clone(),
        checksum: plugin.plugin_checksum.clone(),
        enabled: plugin.enabled.unwrap_or(true),
        data,
    })
}
