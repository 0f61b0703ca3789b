//! The table of rules. docs/lint.md and `netloom lint --explain` are made of it.

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A file or its attachments fail, or another user can become root.
    Error,
    /// The network works otherwise than the file reads, or not with every runtime.
    Warning,
}

/// What a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One file.
    File,
    /// All files of a folder.
    Folder,
    /// The host that the file is for.
    Host,
}

/// The description of a rule.
#[derive(Debug)]
pub struct Info {
    /// The name in kebab case.
    pub name: &'static str,
    /// The severity of its findings.
    pub severity: Severity,
    /// What it looks at.
    pub scope: Scope,
    /// Whether `--fix` can mend at least some of its findings.
    pub is_fixable: bool,
    /// What it finds.
    pub about: &'static str,
    /// What happens otherwise.
    pub why: &'static str,
}

macro_rules! rules {
    ($($rule:ident, $name:literal, $severity:ident, $scope:ident, $fix:literal; $about:literal, $why:literal;)*) => {
        /// A rule.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $(#[doc = $about] $rule,)*
        }

        impl Rule {
            /// Every rule, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$rule),*];

            /// Returns the rule's description.
            pub fn info(self) -> &'static Info {
                const INFOS: &[Info] = &[$(Info {
                    name: $name,
                    severity: Severity::$severity,
                    scope: Scope::$scope,
                    is_fixable: $fix,
                    about: $about,
                    why: $why,
                }),*];
                &INFOS[self as usize]
            }
        }
    };
}

impl Rule {
    /// Finds a rule by its name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|rule| rule.info().name == name)
    }
}

rules! {
    // JSON
    JsonSyntax, "json-syntax", Error, File, false;
    "The text is not JSON",
    "No runtime can load the file";
    JsonComment, "json-comment", Error, File, true;
    "A comment in the text",
    "JSON has no comments, and no runtime accepts them";
    JsonTrailingComma, "json-trailing-comma", Error, File, true;
    "A comma after the last value of an object or array",
    "No runtime accepts it";
    JsonMissingComma, "json-missing-comma", Error, File, true;
    "Two values without a comma between them",
    "No runtime accepts it";
    JsonSingleQuotes, "json-single-quotes", Error, File, true;
    "A string in single quotes",
    "JSON strings are in double quotes";
    JsonUnquotedKey, "json-unquoted-key", Error, File, true;
    "A key without quotes",
    "JSON keys are strings";
    JsonNumber, "json-number", Error, File, true;
    "A number in a form that JSON lacks: `+1`, `0x10`, `.5`",
    "No runtime accepts it";
    JsonBom, "json-bom", Error, File, true;
    "A byte order mark at the beginning",
    "Go's decoder refuses the file";
    JsonUtf8, "json-utf8", Error, File, false;
    "Bytes that are not UTF-8",
    "Parsers refuse the text or replace the bytes";
    JsonEmpty, "json-empty", Error, File, false;
    "A file without content",
    "A runtime that reads it fails";
    JsonNotObject, "json-not-object", Error, File, false;
    "A text that is no JSON object",
    "No runtime can load the file";
    JsonTrailingText, "json-trailing-text", Error, File, false;
    "Text after the configuration",
    "No runtime accepts it";
    JsonDepth, "json-depth", Error, File, false;
    "More than 127 nested objects and arrays",
    "Parsers refuse such a text";
    JsonDuplicateKey, "json-duplicate-key", Warning, File, false;
    "A key that an object has twice",
    "Most parsers use the last value without a message";
    JsonSameKey, "json-same-key", Warning, File, false;
    "Two keys of an object that differ in capitals only",
    "Go's decoder treats them as one key and uses the last value";
    FileTooLarge, "file-too-large", Error, File, false;
    "A file of more than 2 MiB",
    "Netloom refuses it";
    TemplatePlaceholder, "template-placeholder", Error, File, false;
    "A placeholder that nothing has replaced, such as `{{.PodCIDR}}`, `${CIDR}` or `__MTU__`",
    "Plugins get the placeholder as the value";
    // Files
    ListInConf, "list-in-conf", Error, File, false;
    "A list of plugins in a file that is not called `.conflist`",
    "Runtimes read `.conf` and `.json` as one plugin and fail";
    PluginInConflist, "plugin-in-conflist", Error, File, false;
    "A single plugin in a `.conflist`",
    "Runtimes expect `plugins` in it and fail";
    SinglePluginFile, "single-plugin-file", Warning, File, false;
    "A single plugin's file for version 1.0.0 or later",
    "The specification has only lists since 1.0.0";
    ExtensionMisspelt, "extension-misspelt", Warning, Folder, false;
    "A file whose name almost ends in `.conflist`, `.conf` or `.json`",
    "Runtimes do not read the file";
    ConfAndConflist, "conf-and-conflist", Warning, Folder, false;
    "A `.conf` and a `.conflist` of the same name",
    "Runtimes differ in which one they use";
    NetworkTwice, "network-twice", Warning, Folder, false;
    "Two files with the same network name",
    "Runtimes use one of them, not all the same one";
    FileWritable, "file-writable", Error, Host, false;
    "A configuration that others than its owner can write",
    "Whoever can write it can run programs as root";
    FolderWritable, "folder-writable", Error, Host, false;
    "A network folder that all users can write",
    "Whoever can write it can run programs as root";
    FileOwner, "file-owner", Warning, Host, false;
    "A configuration that belongs to another user than root",
    "That user can run programs as root";
    // The network
    NameMissing, "name-missing", Error, File, false;
    "A network without a name",
    "Runtimes refuse it";
    NameInvalid, "name-invalid", Error, File, false;
    "A name with other characters than letters, digits, `_`, `.` and `-`, or that does not begin with a letter or digit",
    "Runtimes refuse it";
    NameDiffers, "name-differs", Warning, File, false;
    "A plugin in a list with another `name` than the list's",
    "The list's name is used";
    VersionMissing, "version-missing", Warning, File, false;
    "A configuration without `cniVersion`",
    "Plugins treat it as version 0.1.0, which has one address per family and no CHECK";
    VersionUnknown, "version-unknown", Error, File, true;
    "A version that no specification has",
    "Plugins refuse it";
    VersionBeforeLists, "version-before-lists", Warning, File, false;
    "A list with a version before 0.3.0",
    "Lists exist since 0.3.0, and results of older versions lose addresses in a chain";
    VersionWithoutEffect, "version-without-effect", Warning, File, false;
    "A key that does nothing at the configuration's version: `disableCheck` before 0.4.0, `disableGC` before 1.1.0",
    "The runtime never calls the verb at that version";
    PluginsMissing, "plugins-missing", Error, File, false;
    "A list without `plugins`, and without files of plugins in the folder beside it",
    "The network has no plugin to run";
    PluginsEmpty, "plugins-empty", Error, File, false;
    "An empty list of plugins",
    "Runtimes refuse it";
    TypeMissing, "type-missing", Error, File, false;
    "A plugin without `type`",
    "The runtime does not know which program to run";
    TypeInvalid, "type-invalid", Error, File, false;
    "A `type` that is not a file name",
    "Plugins are files in the folders of `CNI_PATH`, without any path";
    TypeMisspelt, "type-misspelt", Warning, File, false;
    "A `type` that is almost the name of a known plugin",
    "The runtime finds no such program";
    IpamInChain, "ipam-in-chain", Error, File, false;
    "An IPAM plugin as an entry of `plugins`",
    "IPAM plugins are called by interface plugins, which name them in `ipam.type`";
    InterfaceAsIpam, "interface-as-ipam", Error, File, false;
    "A plugin in `ipam.type` that assigns no addresses",
    "It returns no addresses, or refuses the call";
    PluginMissing, "plugin-missing", Error, Host, false;
    "A plugin that no folder of `--bin-path` has",
    "Every attachment fails";
    PluginNotExecutable, "plugin-not-executable", Error, Host, false;
    "A plugin's file that cannot be executed",
    "Every attachment fails";
    PluginWritable, "plugin-writable", Error, Host, false;
    "A plugin's program that all users can write",
    "Whoever can write it can run programs as root";
    PluginVersion, "plugin-version", Error, Host, false;
    "A plugin that does not support the configuration's version",
    "The plugin refuses every call";
    // Keys and values
    MisspeltKey, "misspelt-key", Warning, File, false;
    "A key that the plugin does not read and that is almost the name of one that it reads",
    "The setting has no effect";
    UnknownKey, "unknown-key", Warning, File, false;
    "A key that the plugin does not read",
    "The setting has no effect";
    KeyCapitals, "key-capitals", Warning, File, true;
    "A known key with other capitals",
    "Parsers that compare exactly ignore the key";
    KeyLevel, "key-level", Warning, File, false;
    "A plugin's key beside `plugins`, or a list's key inside a plugin",
    "The setting has no effect there";
    ReservedKey, "reserved-key", Warning, File, false;
    "A key that only runtimes may set: `prevResult`, `runtimeConfig`, `cni.dev/…`",
    "Runtimes replace or remove it, or plugins mistake it for the runtime's";
    WrongType, "wrong-type", Error, File, true;
    "A value of another type than the key has",
    "Plugins refuse the configuration";
    WrongValue, "wrong-value", Error, File, false;
    "A value that is none of those the key can have",
    "Plugins refuse the configuration";
    OutOfRange, "out-of-range", Error, File, false;
    "A number below or above what the key can have",
    "Plugins refuse the configuration";
    RequiredKey, "required-key", Error, File, false;
    "An entry of a list that lacks a required key",
    "Plugins refuse the configuration";
    // Addresses
    BadAddress, "bad-address", Error, File, false;
    "A value that is not an IP address",
    "Plugins refuse the configuration";
    BadPrefix, "bad-prefix", Error, File, false;
    "A value that is not an address with a prefix length",
    "Plugins refuse the configuration";
    SubnetHostBits, "subnet-host-bits", Error, File, true;
    "A subnet with bits behind its prefix length, such as 10.1.0.5/16",
    "`host-local` refuses it";
    SubnetTooSmall, "subnet-too-small", Error, File, false;
    "A subnet with fewer than two usable addresses",
    "`host-local` refuses it";
    SubnetUnusable, "subnet-unusable", Error, File, false;
    "A subnet that no container can use: loopback, multicast, 0.0.0.0/8, 240.0.0.0/4",
    "The kernel does not route such addresses";
    RangeOutside, "range-outside", Error, File, false;
    "A first or last address outside of its subnet",
    "`host-local` refuses it";
    RangeBackwards, "range-backwards", Error, File, false;
    "A first address behind the last one",
    "`host-local` refuses it";
    RangeOverlap, "range-overlap", Error, File, false;
    "Two ranges of a network with a common address",
    "`host-local` refuses them";
    RangeFamilies, "range-families", Error, File, false;
    "IPv4 and IPv6 in one range set",
    "`host-local` refuses it";
    RangeSetEmpty, "range-set-empty", Error, File, false;
    "A range set without ranges",
    "`host-local` refuses it";
    RangesNotNested, "ranges-not-nested", Error, File, false;
    "`ranges` as a list of ranges instead of a list of lists",
    "`host-local` refuses it";
    RangeMissing, "range-missing", Error, File, false;
    "`host-local` without any range",
    "`host-local` has no address to assign";
    GatewayOutside, "gateway-outside", Warning, File, false;
    "A gateway outside of its subnet",
    "Containers cannot reach it, so the default route fails";
    GatewayUnusable, "gateway-unusable", Warning, File, false;
    "A gateway that is its subnet's network or broadcast address",
    "No host can have that address";
    RouteUnreachable, "route-unreachable", Warning, File, false;
    "A route whose gateway is in none of the network's subnets",
    "The kernel refuses the route";
    RouteFamily, "route-family", Warning, File, false;
    "A route of a family that the network has no addresses of",
    "Containers get the route and cannot use it";
    RouteTwice, "route-twice", Warning, File, false;
    "Two routes to the same destination",
    "Only one of them can be installed";
    DnsServer, "dns-server", Warning, File, false;
    "A name server that is not an IP address",
    "Resolvers ignore it";
    DnsTooMany, "dns-too-many", Warning, File, false;
    "More than three name servers",
    "The C library uses the first three";
    RangeReused, "range-reused", Warning, Folder, false;
    "Ranges of two networks on the same segment, or routed by the host, with a common address",
    "Two containers get the same address";
    SubnetRouted, "subnet-routed", Warning, Host, false;
    "A subnet that the host already reaches over another link",
    "Either the containers or the other addresses become unreachable";
    // Plugins
    HairpinPromiscuous, "hairpin-promiscuous", Error, File, false;
    "`hairpinMode` and `promiscMode` together",
    "`bridge` refuses it";
    InterfaceOff, "interface-off", Error, File, false;
    "`disableContainerInterface` with `ipam`",
    "`bridge` refuses it";
    InterfaceName, "interface-name", Error, File, false;
    "A name that no link can have",
    "The kernel refuses it";
    VlanTrunk, "vlan-trunk", Error, File, false;
    "An incomplete or reversed range in `vlanTrunk`",
    "`bridge` refuses it";
    SpoofCheckAddresses, "spoof-check-addresses", Error, File, false;
    "`ipspoofchk` without `ipam`",
    "There are no addresses to compare with";
    MasqueradeRoute, "masquerade-route", Warning, File, false;
    "`ipMasq` in a network whose containers get no route out",
    "Nothing is ever masqueraded";
    GatewayWithoutIpam, "gateway-without-ipam", Warning, File, false;
    "A bridge with `isGateway` and without `ipam`",
    "The bridge gets no address";
    IpamMissing, "ipam-missing", Error, File, false;
    "A plugin that needs addresses, without `ipam`",
    "The plugin refuses it";
    IpamWithoutType, "ipam-without-type", Error, File, false;
    "An `ipam` with settings but without `type`",
    "No IPAM plugin is called";
    MasterRequired, "master-required", Error, File, false;
    "A VLAN without a parent link",
    "`vlan` refuses it";
    MasterAbsent, "master-absent", Error, Host, false;
    "A parent link or device that the host does not have",
    "Every attachment fails";
    MtuAboveMaster, "mtu-above-master", Error, Host, false;
    "An MTU above that of the parent link",
    "The plugin or the kernel refuses it";
    MtuBelowIpv6, "mtu-below-ipv6", Warning, File, false;
    "An MTU below 1280 with IPv6 addresses",
    "The kernel disables IPv6 on such a link";
    DeviceRequired, "device-required", Error, File, false;
    "`host-device` without a device",
    "`host-device` refuses it";
    VrfName, "vrf-name", Error, File, false;
    "`vrf` without `vrfname`",
    "`vrf` refuses it";
    SysctlNamespace, "sysctl-namespace", Error, File, false;
    "A sysctl outside of `net.`",
    "`tuning` refuses it: only those belong to a network namespace";
    MacAddress, "mac-address", Error, File, false;
    "A value that is not a hardware address",
    "Plugins refuse the configuration";
    BandwidthIncomplete, "bandwidth-incomplete", Error, File, false;
    "A rate without a burst, or a burst without a rate",
    "`bandwidth` refuses it";
    ShapedSubnets, "shaped-subnets", Error, File, false;
    "`shapedSubnets` and `unshapedSubnets` together",
    "`bandwidth` refuses it";
    PathRelative, "path-relative", Warning, File, false;
    "A path that is not absolute",
    "It depends on the folder in which the runtime was started";
    FileAbsent, "file-absent", Error, Host, false;
    "A file that the configuration names and the host does not have",
    "The plugin fails when it reads the file";
    DhcpDaemonAbsent, "dhcp-daemon-absent", Warning, Host, false;
    "IPAM by DHCP without the daemon's socket",
    "`dhcp` fails until its daemon runs";
    PortmapTwoMarks, "portmap-two-marks", Error, File, false;
    "`externalSetMarkChain` and `markMasqBit` together",
    "`portmap` refuses it";
    PortmapKubeMark, "portmap-kube-mark", Warning, File, false;
    "`markMasqBit` 14 or 15",
    "kube-proxy uses these bits to masquerade and to drop packets";
    BridgeOfDocker, "bridge-of-docker", Warning, File, false;
    "A bridge that belongs to Docker, podman or libvirt",
    "Two programs configure one bridge, and each replaces the other's address";
    FirewallWithoutBridge, "firewall-without-bridge", Warning, File, false;
    "`firewall` with an ingress policy in a network without a bridge",
    "The policy needs a bridge in the previous result";
    FlannelDelegate, "flannel-delegate", Error, File, false;
    "A key in flannel's `delegate` that flannel sets",
    "flannel refuses it";
    MultusDelegates, "multus-delegates", Error, File, false;
    "Multus without `delegates` and `clusterNetwork`",
    "Multus has no network to attach";
    ForwardDropped, "forward-dropped", Warning, Host, false;
    "A network without `firewall` on a host that drops forwarded packets, as Docker and ufw make it",
    "Containers reach the host and nothing else";
    // Chains and capabilities
    ChainedFirst, "chained-first", Error, File, false;
    "A plugin that needs a previous result as the first of the list",
    "It refuses the call";
    SecondInterface, "second-interface", Error, File, false;
    "A second plugin that creates the container's interface",
    "The name is already used, so it fails";
    PluginTwice, "plugin-twice", Warning, File, false;
    "The same chained plugin twice in a list",
    "Its rules, rates or tables are made twice, or the second call fails";
    ChainAddresses, "chain-addresses", Warning, File, false;
    "`portmap` after an interface plugin without `ipam`",
    "Ports are published to an address, and there is none";
    CapabilityMisspelt, "capability-misspelt", Warning, File, true;
    "A capability that is almost the name of a known one",
    "Runtimes compare names exactly, so the plugin gets nothing";
    CapabilityUnread, "capability-unread", Warning, File, false;
    "A capability that the plugin does not read",
    "What the runtime passes has no effect";
    CapabilityMissing, "capability-missing", Warning, File, false;
    "`portmap` or `bandwidth` without its capability",
    "The plugin does nothing, since it gets neither ports nor rates";
    // Several networks
    BridgeTwoGateways, "bridge-two-gateways", Warning, Folder, false;
    "Two networks that give one bridge different IPv4 gateways",
    "The second network's attachments fail or replace the address";
    VlanTwice, "vlan-twice", Warning, Folder, false;
    "Two networks with the same VLAN of the same parent link",
    "The kernel allows a VLAN only once per parent link";
    DeviceTwice, "device-twice", Warning, Folder, false;
    "Two networks that move the same device",
    "Only one container can have the device";
    MacvlanBesideIpvlan, "macvlan-beside-ipvlan", Warning, Folder, false;
    "macvlan and ipvlan on the same parent link",
    "The kernel allows one of the two per parent link";
    // Safety net
    Unusable, "unusable", Error, File, false;
    "A configuration that Netloom cannot load for another reason than the rules name",
    "Its attachments fail";
}
