//! `config`: the merged, canonical model of the stack file.

use anyhow::{Context, Result};

use crate::args::Config;
use crate::exit::{Exit, Failure};
use crate::settings::Settings;
use crate::{printer, stack_file};

/// Prints what was asked for.
pub(super) fn run(settings: &Settings, args: &Config) -> Result<Exit> {
    let loaded = stack_file::load_with(settings, &args.only, !args.no_interpolate)?;
    if settings.quiet {
        return Ok(Exit::Done);
    }
    let spec = &loaded.spec;
    let names = |names: Vec<&String>| names.iter().map(|n| format!("{n}\n")).collect::<String>();
    let text = if args.services {
        names(spec.services.keys().collect())
    } else if args.images {
        let images: std::collections::BTreeSet<&String> =
            spec.services.values().map(|s| &s.image).filter(|i| !i.is_empty()).collect();
        names(images.into_iter().collect())
    } else if args.volumes {
        names(spec.volumes.keys().collect())
    } else if args.networks {
        names(spec.networks.keys().collect())
    } else if args.profiles {
        let profiles: std::collections::BTreeSet<&String> = spec.services.values().flat_map(|s| &s.profiles).collect();
        names(profiles.into_iter().collect())
    } else if let Some(wanted) = &args.hash {
        let mut text = String::new();
        for (name, service) in &spec.services {
            if wanted == "*" || wanted.split(',').any(|w| w == name) {
                text.push_str(&format!("{name} {}\n", service.digest(spec)));
            }
        }
        text
    } else {
        match args.format.as_str() {
            "yaml" => loaded.canonical_yaml(),
            "json" => loaded.canonical_json(),
            other => return Err(Failure::usage(format!("--format {other}: write `yaml` or `json`")).into()),
        }
    };
    match &args.output {
        Some(path) => std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?,
        None => printer::out(&text),
    }
    Ok(Exit::Done)
}
