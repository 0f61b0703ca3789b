//! What rules need to know of this host.

use std::{
    cell::RefCell, collections::HashMap, fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration,
};

use kernel::{IpFamily, Protocol, Socket, link, route};
use lint::host::{Host, HostLink, HostRoute, Program};
use netloom_invoke::{FindError, find_in_path};

use super::super::{Outcome, Places, networks::Runtime};

/// Time limit of a plugin that is asked for its versions.
const PATIENCE: Duration = Duration::from_secs(5);

/// This host, as it was when the command began.
pub(super) struct ThisHost {
    links: Vec<HostLink>,
    default_link: Option<String>,
    routes: Vec<HostRoute>,
    drops_forwarded: bool,
    folder: Option<(String, u32)>,
    folders: String,
    runtime: Runtime,
    programs: RefCell<HashMap<String, Program>>,
}

impl ThisHost {
    /// Reads links, routes and chains of this host, and the access to the network folder.
    pub(super) fn read(places: &Places, folder: &Path) -> Outcome<Self> {
        let socket = Socket::open(Protocol::Route)?;
        let links = link::list(&socket)?;
        let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
        let mut routes = Vec::new();
        let mut default_link = None;
        for like in IpFamily::ALL.map(IpFamily::unspecified) {
            for route in
                route::list(&socket, like)?.into_iter().filter(|route| route.table == route::TABLE_MAIN)
            {
                let Some(link) = name(route.link) else { continue };
                if route.dst.prefix_len() == 0 {
                    default_link.get_or_insert(link);
                } else {
                    routes.push(HostRoute { to: route.dst, link, is_connected: route.gateway.is_none() });
                }
            }
        }
        let folder = fs::metadata(folder)
            .ok()
            .map(|metadata| (folder.display().to_string(), metadata.permissions().mode() & 0o7777));
        let mut runtime = places.runtime();
        runtime.timeout = Some(PATIENCE);
        Ok(Self {
            links: links
                .into_iter()
                .map(|link| HostLink { names: [vec![link.name], link.other_names].concat(), mtu: link.mtu })
                .collect(),
            default_link,
            routes,
            drops_forwarded: drops_forwarded(),
            folder,
            folders: places.bin_path.clone(),
            runtime,
            programs: RefCell::default(),
        })
    }

    fn look_up(&self, kind: &str) -> Program {
        let shown = |path: &Path| Some(path.display().to_string());
        match find_in_path(kind, &self.runtime.paths) {
            Err(FindError::NotFound { not_executable: Some(path), .. }) => {
                Program { path: shown(&path), is_not_executable: true, ..Program::default() }
            }
            Err(_) => Program::default(),
            Ok(path) => Program {
                path: shown(&path),
                is_writable: fs::metadata(&path).is_ok_and(|it| it.permissions().mode() & 0o002 != 0),
                versions: self.runtime.version(kind).map(|info| info.supported_versions).unwrap_or_default(),
                ..Program::default()
            },
        }
    }
}

/// Returns whether the host drops forwarded packets. Without the right to read chains the answer is no.
fn drops_forwarded() -> bool {
    let socket = Socket::open(Protocol::Netfilter);
    socket.is_ok_and(|socket| ruleset::forward_hook::drops_by_default(&socket).unwrap_or(false))
}

impl Host for ThisHost {
    fn links(&self) -> &[HostLink] {
        &self.links
    }

    fn default_link(&self) -> Option<&str> {
        self.default_link.as_deref()
    }

    fn routes(&self) -> &[HostRoute] {
        &self.routes
    }

    fn program(&self, kind: &str) -> Program {
        self.programs.borrow_mut().entry(kind.to_owned()).or_insert_with(|| self.look_up(kind)).clone()
    }

    fn folders(&self) -> &str {
        if self.folders.is_empty() { "any folder" } else { &self.folders }
    }

    fn has_file(&self, path: &str) -> bool {
        Path::new(path).exists()
    }

    fn drops_forwarded(&self) -> bool {
        self.drops_forwarded
    }

    fn folder(&self) -> Option<(String, u32)> {
        self.folder.clone()
    }
}
