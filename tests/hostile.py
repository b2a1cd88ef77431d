"""Hostile URLs by class, each with what its refusal must say; and addresses that are never dialled.

`PORT` stands for a port of loopback, so that a test can put a listener there and see that nobody comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

URLS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "loopback": {
        "is not called: loopback": [
            "https://127.0.0.1/", "https://127.0.0.1:PORT/", "https://127.0.0.2:PORT/", "https://127.255.255.255:PORT/",
            "https://127.1.2.3/", "https://[::ffff:127.0.0.1]:PORT/", "https://[::ffff:7f00:1]:PORT/",
            "https://[0:0:0:0:0:ffff:7f00:0001]:PORT/", "https://[0000:0000:0000:0000:0000:FFFF:127.0.0.1]/",
        ],
        "is not called: not a global": [
            "https://[::1]:PORT/", "https://[0:0:0:0:0:0:0:1]:PORT/", "https://[0000:0000::0001]/",
            "https://[::0.0.0.1]/",
        ],
        "A numeric host": [
            "https://127.1:PORT/", "https://127.0.1:PORT/", "https://0x7f.1:PORT/", "https://0x7f000001:PORT/",
            "https://2130706433:PORT/", "https://0177.0.0.1:PORT/", "https://0177.0.0.01/", "https://127.0.0.01/",
            "https://127.0.0.1.:PORT/", "https://127.0.0.0x1/", "https://0X7F.0.0.1/", "https://017700000001/",
            "https://0x7f.0x0.0x0.0x1/", "https://0x7F.0.1/", "https://127.0x1/", "https://0000177.0.0.1/",
            "https://4294967297/", "https://383.0.0.1/", "https://127.65536/",
        ],
        "internal name": [
            "https://localhost:PORT/", "https://LOCALHOST:PORT/", "https://LocalHost/", "https://a.localhost:PORT/",
            "https://localhost.localdomain/", "https://a.b.localhost/",
        ],
        "full stop; leave it out": ["https://localhost.:PORT/"],
        "not a single word": ["https://ip6-localhost/", "https://localhost6:PORT/", "https://loopback/"],
    },
    "unspecified": {
        "is not called: this network": [
            "https://0.0.0.0:PORT/", "https://0.0.0.1/", "https://0.255.255.255/", "https://[::ffff:0.0.0.0]:PORT/",
        ],
        "is not called: not a global": ["https://[::]:PORT/", "https://[0:0:0:0:0:0:0:0]/"],
        "A numeric host": [
            "https://0:PORT/", "https://0x0:PORT/", "https://00000:PORT/", "https://0.0:PORT/", "https://0x/",
        ],
    },
    "private": {
        "is not called: a private network": [
            "https://10.0.0.1/", "https://10.255.255.255/", "https://172.16.0.1/", "https://172.31.255.255/",
            "https://192.168.0.1/", "https://192.168.1.1:8443/", "https://[::ffff:10.0.0.1]/",
            "https://[::ffff:c0a8:1]/", "https://[0:0:0:0:0:ffff:0a00:0001]:8443/",
        ],
        "is not called: not a global": [
            "https://[fc00::1]/", "https://[fdff:ffff::1]/", "https://[fe80::1]/", "https://[fec0::1]/",
        ],
        "A numeric host": [
            "https://10.1/", "https://012.0.0.1/", "https://0xa.0.0.1/", "https://167772161/", "https://192.168.257/",
            "https://0xc0a80001/", "https://3232235521/", "https://00000010.0.0.1/",
        ],
    },
    "IPv6 forms": {
        "Brackets must hold": [
            "https://[]/", "https://[example.com]/", "https://[v1.x]/", "https://[vF.::1]/", "https://[1:2]/",
            "https://[::g]/", "https://[8.8.8.8]/", "https://[8.8.8.8]:443/", "https://[:::1]/", "https://[1::2::3]/",
            "https://[1:2:3:4:5:6:7:8:9]/", "https://[::127.0.0.01]/", "https://[::ffff:127.1]/", "https://[::00001]/",
            "https://[::1:]/", "https://[localhost]/",
        ],
        "one host and at most one port": [
            "https://::1/", "https://2606:4700::1111/", "https://[::1/", "https://::1]/", "https://[::1]x/",
            "https://x[::1]/", "https://[[::1]]/", "https://[::1][::2]/", "https://[::1].example.com/",
            "https://example.com[::1]/",
        ],
        "percent-encoded": [
            "https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[::1%251]/",
            "https://[2606:4700::1111%25eth0]/", "https://[::1%25lo]:PORT/", "https://[%3a%3a1]/",
        ],
        "Write the IPv4 address": ["https://[::ffff:8.8.8.8]/", "https://[::ffff:808:808]/"],
        "is not called": [
            "https://[::127.0.0.1]:PORT/", "https://[::7f00:1]/", "https://[::10.0.0.1]/", "https://[::8.8.8.8]/",
            "https://[::ffff:0:0]/", "https://[::ffff:100.64.0.1]/", "https://[::ffff:255.255.255.255]/",
        ],
    },
    "metadata": {
        # AWS, Azure, Google, Oracle, DigitalOcean, Hetzner, IBM, OpenStack, Huawei, Vultr, Exoscale, OVH and others
        "is not called: link-local": [
            "https://169.254.169.254/latest/meta-data/iam/security-credentials/",
            "https://169.254.169.254/computeMetadata/v1/",
            "https://169.254.169.254/metadata/instance?api-version=2021-02-01",
            "https://169.254.169.254/opc/v2/instance/", "https://169.254.169.254/openstack/latest/meta_data.json",
            "https://169.254.169.254:80/", "https://[::ffff:169.254.169.254]/",
            "https://[::ffff:a9fe:a9fe]/latest/meta-data/",
            "https://169.254.169.253/", "https://169.254.169.123/",  # AWS: names, time
            "https://169.254.170.2/v2/credentials/", "https://169.254.170.23/v1/credentials",  # AWS: ECS, EKS
            "https://169.254.0.23/latest/meta-data/", "https://169.254.10.10/",  # Tencent, Rackspace
            "https://169.254.42.42/conf?format=json",  # Scaleway
        ],
        "is not called: shared": [  # Alibaba
            "https://100.100.100.200/latest/meta-data/", "https://[::ffff:100.100.100.200]/",
        ],
        "is not called: a cloud": [  # Azure
            "https://168.63.129.16/machine?comp=goalstate", "https://[::ffff:168.63.129.16]/",
        ],
        "is not called: reserved for protocols": [  # Oracle
            "https://192.0.0.192/latest/", "https://[::ffff:192.0.0.192]/",
        ],
        "is not called: not a global": [
            "https://[fd00:ec2::254]/latest/meta-data/", "https://[fd00:ec2::253]/", "https://[fd00:ec2::23]/",  # AWS
            "https://[fd20:ce::254]/computeMetadata/v1/", "https://[fd00:c1::a9fe:a9fe]/opc/v2/",  # Google, Oracle
            "https://[fd00:42::42]/conf", "https://[fd00:a9fe:a9fe::1]/v1/", "https://[fe80::a9fe:a9fe]/openstack",
        ],  # Scaleway, Linode, OpenStack
        "A numeric host": [
            "https://2852039166/latest/meta-data/", "https://0xa9fea9fe/", "https://0xa9.0xfe.0xa9.0xfe/",
            "https://0251.0376.0251.0376/", "https://025177524776/", "https://169.16689662/", "https://169.254.43518/",
            "https://169.254.169.0376/",
        ],
        "internal name": [
            "https://metadata.google.internal/computeMetadata/v1/", "https://METADATA.google.INTERNAL/",
            "https://metadata.goog.internal/", "https://instance-data.ec2.internal/latest/meta-data/",
            "https://instance-data.eu-west-1.compute.internal/", "https://metadata.azure.internal/",
            "https://kubernetes.default.svc.cluster.local/api", "https://host.docker.internal:PORT/",
            "https://gateway.docker.internal/", "https://consul.service.local/",
        ],
        "not a single word": [
            "https://metadata/computeMetadata/v1/", "https://instance-data/latest/meta-data/",
            "https://rancher-metadata/latest", "https://kubernetes/api", "https://metadata:80/",
        ],
        "full stop; leave it out": ["https://metadata.google.internal./"],
    },
    "transition": {
        "is not called: a 6to4": [
            "https://[2002:7f00:1::]/", "https://[2002:a9fe:a9fe::1]/", "https://[2002:c0a8:101::1]/",
        ],
        "is not called: reserved for protocols": [
            "https://[2001::1]/", "https://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
            "https://[2001:0:7f00:1::]/",  # Teredo
            "https://[2001:20::1]/", "https://[2001:2::1]/",  # ORCHIDv2, benchmarks
        ],
        "is not called: not a global": [
            "https://[64:ff9b::127.0.0.1]:PORT/", "https://[64:ff9b::7f00:1]/", "https://[64:ff9b::a9fe:a9fe]/latest/",
            "https://[64:ff9b::8.8.8.8]/", "https://[64:ff9b:1::10.0.0.1]/",
            "https://[64:ff9b:1:a9fe:a9:fe00::]/",  # NAT64
            "https://[::ffff:0:127.0.0.1]/", "https://[::ffff:0:a9fe:a9fe]/",  # SIIT
            "https://[fe80::5efe:127.0.0.1]/", "https://[fe80::200:5efe:10.0.0.1]/",
            "https://[fd00::5efe:192.168.0.1]/",  # ISATAP
        ],
        "is not called: a retired": ["https://192.88.99.1/", "https://[::ffff:192.88.99.1]/"],
    },
    "special ranges": {
        "is not called": [
            "https://100.64.0.1/", "https://100.127.255.255/", "https://192.0.0.1/", "https://192.0.0.170/",
            "https://192.0.2.1/", "https://192.31.196.1/", "https://192.52.193.1/", "https://192.175.48.1/",
            "https://198.18.0.1/", "https://198.19.255.255/", "https://198.51.100.1/", "https://203.0.113.1/",
            "https://224.0.0.1/", "https://239.255.255.250:1900/", "https://240.0.0.1/", "https://255.255.255.255/",
            "https://[100::1]/", "https://[2001:db8::1]/", "https://[2620:4f:8000::1]/", "https://[3fff::1]/",
            "https://[4000::1]/", "https://[5f00::1]/", "https://[ff02::1]/", "https://[ff0e::1]/",
            "https://[1fff:ffff::1]/",
        ],
    },
    "Unicode": {
        "plain full stops": [
            "https://127。0。0。1:PORT/", "https://127．0．0．1/", "https://127｡0｡0｡1/", "https://example。com/",
            "https://localhost。/", "https://169。254。169。254/", "https://a\u2024example.com/",
            "https://a\ufe52example.com/",
        ],
        "no international name": [
            "https://ⓛocalhost/", "https://ⓔxample.com/", "https://ｅｘａｍｐｌｅ.com/", "https://１２７.com/",
            "https://☃.example.com/", "https://xn--/", "https://xn--a.example.com/", "https://xn--0.example.com/",
            "https://BÜCHER.example.com/", "https://\u0301a.example.com/", "https://exa\u00admple.com/",
            "https://xn--exmple-.com/", "https://\u2488.example.com/", "https://①②⑦.⓪.⓪.①/", "https://１２７.０.０.１:PORT/",
            "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:PORT/", "https://ｌｏｃａｌｈｏｓｔ:PORT/", "https://metadata.google.ｉｎｔｅｒｎａｌ/",
            "https://loc\u0430lhost.\u212bxample.com/", "https://ﬁle.example.com/", "https://xn--lcalhost-54a.xn--/",
            "https://example.com⁄.evil.example/", "https://℀.example.com/",
        ],
        "spaces, control": [
            "https://exa\u200bmple.com/", "\ufeffhttps://example.com/", "https://example.com/\u202egnp",
            "https://example.com\u2028/", "https://local\u2060host/", "https://example.com/\u00a0",
            "https://example.com\u3000/", "https://a\u200d.example.com/",
        ],
        "port must be": ["https://example.com:４４３/", "https://example.com:٤٤٣/"],
        "percent-encode others": ["https://example.com/é", "https://example.com/?q=日本"],
        "not a single word": ["https://bücher/", "https://xn--bcher-kva/"],
    },
    "parser confusion": {
        "credentials": [
            "https://user@example.com/", "https://user:pass@example.com/", "https://@example.com/",
            "https://:@example.com/", "https://example.com@127.0.0.1:PORT/", "https://example.com:443@10.0.0.1/",
            "https://a@b@example.com/", "https://127.0.0.1:PORT@example.com/", "https://example.com%00@127.0.0.1/",
            "https://x@[::1]:PORT/", "https://169.254.169.254:80@example.com/",
        ],
        "fragment": [
            "https://example.com/#x", "https://example.com#@127.0.0.1:PORT/", "https://example.com/a#",
            "https://127.0.0.1:PORT#@example.com/", "https://example.com#.evil.example/",
        ],
        "backslash": [
            "https://example.com\\@127.0.0.1:PORT/", "https:\\\\example.com", "https://example.com/a\\b",
            "https://127.0.0.1\\.example.com/", "https://127.0.0.1:PORT\\@example.com/", "https:/\\example.com/",
        ],
        "one host and at most one port": [
            "https://example.com:80:443/", "https://127.0.0.1:PORT:443/", "https://example.com::443/",
        ],
        "percent-encoded": [
            "https://%6cocalhost/", "https://127.0.0.1%2f.example.com/", "https://ex%61mple.com/",
            "https://example.com%00.evil.com/", "https://127%2e0%2e0%2e1/", "https://%31%32%37.0.0.1/",
            "https://example.com%2f127.0.0.1/", "https://%00/",
        ],
        "Must name a host": [
            "https://", "https:///x", "https://:443/", "https://?x", "https:////127.0.0.1/", "https://?@127.0.0.1/",
        ],
        "letters, digits and inner hyphens": [
            "https://$(id).example.com/", "https://a,b.example.com/", "https://a;b.com/",
            "https://127.0.0.1;example.com/", "https://example.com&.evil.example/", "https://a'b.example.com/",
            "https://*.example.com/", "https://a!b.example.com/",
        ],
        "percent-encode others": [
            "https://example.com/%", "https://example.com/%zz", "https://example.com/%4",
            "https://example.com/<script>", 'https://example.com/"', "https://example.com/{id}",
            "https://example.com/?q=|", "https://example.com/^", "https://example.com/`", "https://example.com/[x]",
        ],
    },
    "control characters": {
        "spaces, control": [
            " https://example.com/", "https://example.com/ ", "https://exam ple.com/", "https://example.com/a b",
            "https://example.com/\r\nHost: evil", "https://example.com/ HTTP/1.1\r\nX: y", "https://exam\tple.com/",
            "https://example.com/\x7f", "https://example.com\n", "https://\x0bexample.com", "https://example.com/\x85",
            "https://example.com\r", "\thttps://example.com/", "ht\ntps://example.com/",
            "https://127.0.0.1\t.example.com/", "https://example.com\x1f/", "https://example.com:4\n43/",
        ],
        "spaces, control or": [  # not storable
            "https://example.com/\x00", "https://example.com\x00.evil.example/", "\x00",
        ],
    },
    "hosts": {
        "internal name": [
            "https://printer.local/", "https://db.internal/", "https://router.home.arpa/", "https://x.LOCAL:8443/",
            "https://redis.prod.internal/", "https://vault.service.consul.local/",
        ],
        "not a single word": [
            "https://redis/", "https://db/", "https://postgres:8443/", "https://a/", "https://com/",
        ],
        "full stop; leave it out": ["https://example.com./", "https://example.com../", "https://db.internal./"],
        "empty parts": ["https://example..com/", "https://.example.com/", "https://a...b.com/"],
        "letters, digits and inner hyphens": [
            "https://-a.example.com/", "https://a-.example.com/", "https://a_b.example.com/", "https://_.example.com/",
            "https://" + "a" * 64 + ".example.com/", "https://a.-b.com/",
        ],
        "at most 253": ["https://" + ".".join(["a" * 60] * 5) + "/"],
        "at most 2048": ["https://example.com/" + "a" * 2048, "https://" + "a." * 2048 + "com/"],
        "A numeric host": [
            "https://127.0.0.256/", "https://1.2.3.4.5/", "https://example.1/", "https://example.0x/",
            "https://4294967295/", "https://1..1/", "https://.1/", "https://example.com.0x7f/", "https://1.2.3.999/",
        ],
    },
    "ports": {
        "port must be": [
            "https://example.com:/", "https://example.com:0/", "https://example.com:65536/", "https://example.com:-1/",
            "https://example.com:+443/", "https://example.com:0443/", "https://example.com:4_43/",
            "https://example.com:0x1bb/", "https://example.com:99999999999/", "https://example.com:x/",
            "https://[2606:4700::1]:/", "https://example.com:443x/", "https://example.com:4.43/",
        ],
        "is not called: use 443": [
            "https://example.com:22/", "https://example.com:25/", "https://example.com:1/", "https://example.com:1023/",
            "https://example.com:8/", "https://example.com:81/", "https://example.com:23/", "https://example.com:53/",
            "https://example.com:110/", "https://example.com:389/", "https://example.com:445/",
            "https://example.com:873/",
        ],
        "internal service": [
            "https://example.com:6379/", "https://example.com:5432/", "https://example.com:2375/",
            "https://example.com:9200/", "https://example.com:11211/", "https://example.com:10250/",
            "https://example.com:3306/", "https://example.com:2379/", "https://example.com:8500/",
            "https://example.com:27017/", "https://example.com:6443/", "https://example.com:3128/",
            "https://example.com:6000/", "https://example.com:5060/",
        ],
    },
    "schemes": {
        "Must be https": [
            "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/",
            "ws://example.com/", "unix:///run/docker.sock", "HTTP://example.com", "httpss://example.com",
            "http://169.254.169.254/latest/meta-data/", "gopher://127.0.0.1:6379/_FLUSHALL",
            "dict://127.0.0.1:11211/stats", "ldap://127.0.0.1/", "sftp://127.0.0.1/", "netdoc:///etc/passwd",
            "tftp://127.0.0.1/x", "wss://example.com/", "http://127.0.0.1:PORT/", "https+unix://example.com/",
            "view-source://example.com/",
        ],
        "Must be a complete URL": [
            "", "example.com", "//example.com/", "/hooks", "https:example.com", "https:/example.com", "://example.com",
            "javascript:alert(1)", "data:text/plain,x", "https", "1https://example.com", "https;//example.com",
            "https//example.com", "view-source:https://example.com/", "jar:https://example.com/!/", "127.0.0.1:PORT",
        ],
    },
}  # fmt: skip


def urls(port: int = 8443) -> Iterator[tuple[str, str, str]]:
    """Class, URL, and a part of what its refusal says."""
    for kind, by_fault in URLS.items():
        for fault, group in by_fault.items():
            for url in group:
                yield kind, url.replace("PORT", str(port)), fault


ADDRESSES: Mapping[str, Sequence[str]] = {
    "this network": ["0.0.0.0", "0.1.2.3", "0.255.255.255"],
    "private": ["10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255"],
    "shared": ["100.64.0.0", "100.100.100.200", "100.127.255.255"],
    "loopback": ["127.0.0.1", "127.1.2.3", "127.255.255.255", "::1"],
    "link-local": ["169.254.0.1", "169.254.169.254", "169.254.170.2", "fe80::1", "febf::1"],
    "protocols": ["192.0.0.0", "192.0.0.8", "192.0.0.170", "192.0.0.255", "2001::1", "2001:1ff:ffff::1"],
    "documentation": ["192.0.2.1", "198.51.100.255", "203.0.113.1", "2001:db8::1", "3fff:fff::1"],
    "sinks and relays": ["192.31.196.1", "192.52.193.1", "192.175.48.1", "192.88.99.1", "2620:4f:8000::1"],
    "benchmarks": ["198.18.0.1", "198.19.255.255"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.255"],
    "cloud": [
        "168.63.129.16", "fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fe80::a9fe:a9fe", "fd00:42::42",
    ],
    "6to4": ["2002::1", "2002:7f00:1::", "2002:c0a8:101::1"],
    "Teredo": ["2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "unspecified": ["::"],
    "mapped": [
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:100.64.0.1",
        "::ffff:0:0",
        "0:0:0:0:0:ffff:c0a8:1",
    ],
    "compatible": ["::127.0.0.1", "::10.0.0.1", "::8.8.8.8"],
    "translated": [
        "64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "64:ff9b:1::a9fe:a9fe", "::ffff:0:127.0.0.1",
    ],
    "ISATAP": ["fe80::5efe:127.0.0.1", "fd00::5efe:192.168.0.1"],
    "unique local": ["fc00::1", "fdff:ffff::1"],
    "site-local": ["fec0::1", "feff::1"],
    "not allocated": ["100::1", "4000::1", "5f00::1", "8000::1", "1fff:ffff::1"],
}  # fmt: skip

# What no resolver should give, and `check_address` must not stumble over.
NO_ADDRESSES: Mapping[str, Sequence[str]] = {
    "scoped": ["fe80::1%eth0", "2606:4700::1111%1", "::1%lo", "8.8.8.8%eth0"],
    "no address": ["", "localhost", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "1.2.3.4.5", " 8.8.8.8"],
}

# Names that nothing is wrong with, of hosts inside: they pass a subscription's creation, and their addresses don't.
INNER_NAMES: Mapping[str, str] = {
    "metadata.tencentyun.com": "169.254.0.23",
    "metadata.nic.example": "169.254.169.254",
    "169.254.169.254.nip.io": "169.254.169.254",
    "alibaba.example.com": "100.100.100.200",
    "azure.example.com": "168.63.129.16",
    "kubernetes.default.svc": "10.96.0.1",
    "localtest.me": "127.0.0.1",
    "127.0.0.1.nip.io": "127.0.0.1",
    "7f000001.rbndr.example": "127.0.0.1",
    "zero.example.com": "0.0.0.0",
    "broadcast.example.com": "255.255.255.255",
    "router.corp": "192.168.1.1",
}
