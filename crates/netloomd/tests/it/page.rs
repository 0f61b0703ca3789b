//! What the web page reads and is: the last repairs and faults, the pods, tags of the status, and files that load nothing from elsewhere.

use serde_json::{Value, json};

use crate::lab::{Lab, Plan};

/// Returns the head and the body of an answer of the first host's daemon.
fn get(lab: &Lab, path: &str, header: &str) -> (String, String) {
    let answer = lab.hosts[0].sh(&format!("curl -si --max-time 5 -H '{header}' http://127.0.0.1:9470{path}"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn one_host() -> Lab {
    Lab::of(Plan { hosts: 1, ..Plan::default() })
}

/// The status has the last repairs by kind, and the faults that began and ended.
#[test]
fn repairs_and_faults_are_remembered() {
    if !testkit::is_root() {
        return;
    }
    let lab = one_host();
    lab.wait_for_peers(0, 0);
    let status = lab.status(0);
    assert_eq!((&status["repairs"], &status["faults"]), (&json!([]), &json!([])), "{status:#}");
    for (harm, kind) in [
        ("ip route del blackhole 10.244.0.0/16", "routes"),
        ("nft delete table inet netloom-cluster", "rulesets"),
        ("ip link set netloom4 mtu 1300", "devices"),
    ] {
        // What is put right together with another change, such as the store's, is not counted as a repair.
        let counted = (0..5).any(|_| {
            let changes = |status: &Value| status["counters"]["changes"].as_u64();
            let before = changes(&lab.status(0));
            lab.hosts[0].sh(harm);
            lab.wait(0, "changing it back", |status| changes(status) > before);
            let status = lab.status(0);
            status["repairs"].as_array().unwrap().iter().any(|repair| repair["changes"] == json!({kind: 1}))
        });
        assert!(counted, "{harm}: {:#}", lab.status(0));
    }
    let at = lab.status(0)["repairs"][0]["at"].as_u64().unwrap();
    let clock: u64 = lab.hosts[0].sh("date +%s").trim().parse().unwrap();
    assert!(at <= clock && clock < at + 100, "{at} {clock}");

    let routes = lab.hosts[0].sh("ip route show default").trim().to_owned();
    let routes6 = lab.hosts[0].sh("ip -6 route show default").trim().to_owned();
    lab.hosts[0].sh("ip route del default; ip -6 route del default");
    lab.wait(0, "showing the fault", |status| {
        let fault = &status["faults"][0];
        fault["problem"].as_str().is_some_and(|it| it.contains("no default route"))
            && fault["until"].is_null()
    });
    // Faults of less than a second are left out.
    let second = lab.hosts[0].sh("date +%s");
    lab.until(0, &format!("test $(date +%s) -gt $(({} + 1))", second.trim()));
    lab.hosts[0].sh(&format!("ip route add {routes}; ip -6 route add {routes6}"));
    lab.wait(0, "showing that the fault is gone", |status| {
        let fault = &status["faults"][0];
        status["ready"] == true && fault["until"].as_u64() > fault["since"].as_u64()
    });
}

/// `/pods` names each reserved address's container and interface.
#[test]
fn pods_are_listed() {
    if !testkit::is_root() {
        return;
    }
    let lab = one_host();
    lab.wait_for_peers(0, 0);
    let pods = |lab: &Lab| serde_json::from_str::<Value>(&get(lab, "/pods", "").1).unwrap();
    assert_eq!(pods(&lab), json!([]));
    let mut addresses = lab.pod(0, "web");
    addresses.sort();
    let shown = pods(&lab);
    let mut listed: Vec<&str> =
        shown.as_array().unwrap().iter().map(|pod| pod["address"].as_str().unwrap()).collect();
    listed.sort_unstable();
    let plain: Vec<&str> = addresses.iter().map(|it| it.split('/').next().unwrap()).collect();
    assert_eq!(listed, plain, "{shown:#}");
    for pod in shown.as_array().unwrap() {
        assert_eq!((&pod["network"], &pod["interface"]), (&json!("netloom"), &json!("eth0")), "{pod}");
        assert_eq!(pod["container"], shown[0]["container"], "{shown:#}");
        assert_ne!(pod["container"], "", "{shown:#}");
    }
    lab.end(0, "web");
    assert_eq!(pods(&lab), json!([]));
}

/// An unchanged status is not sent again; a change of it, and nothing else, changes its tag.
#[test]
fn an_unchanged_status_is_not_sent_again() {
    if !testkit::is_root() {
        return;
    }
    let lab = one_host();
    lab.wait_for_peers(0, 0);
    let tag = |head: &str| head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    // A round of probes changes the tag, each two seconds in a small cluster: one of a few requests in a row is within one.
    let unchanged = (0..5).any(|_| {
        let (head, body) = get(&lab, "/status", "");
        assert!(head.starts_with("HTTP/1.1 200") && body.starts_with('{'), "{head}");
        let (again, nothing) = get(&lab, "/status", &format!("if-none-match: \"x\", {}", tag(&head)));
        again.starts_with("HTTP/1.1 304") && nothing.is_empty() && tag(&again) == tag(&head)
    });
    assert!(unchanged);
    let (before, _) = get(&lab, "/status", "");
    lab.hosts[0].sh("touch /run/net.d/05-other.conflist; ip link add x type veth; ip link del x");
    lab.wait(0, "aware of another network", |status| status["notes"][0].is_string());
    let (after, _) = get(&lab, "/status", &format!("if-none-match: {}", tag(&before)));
    assert!(after.starts_with("HTTP/1.1 200"), "{after}");
}

/// The page loads nothing from elsewhere and sets no markup, and its policy says so to the browser.
#[test]
fn the_page_needs_nothing_else() {
    if !testkit::is_root() {
        return;
    }
    let lab = one_host();
    lab.wait_for_peers(0, 0);
    for (path, kind) in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")] {
        let (head, body) = get(&lab, path, "");
        assert!(head.contains(&format!("content-type: {kind}; charset=utf-8")), "{head}");
        assert!(head.contains("content-security-policy: default-src 'none'; script-src 'self';"), "{head}");
        for outside in ["http:", "https:", "//cdn", "@import", "url("] {
            assert!(!body.contains(outside), "{path}: {outside}");
        }
        for markup in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=", "onclick="]
        {
            assert!(!body.contains(markup), "{path}: {markup}");
        }
    }
    let (_, page) = get(&lab, "/", "");
    let script = include_str!("../../../node/src/page/page.js");
    let calls = script.match_indices("at(\"").filter(|(at, _)| !script[..*at].ends_with(char::is_alphabetic));
    for id in calls.filter_map(|(at, call)| script[at + call.len()..].split('"').next()) {
        assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
    }
}
