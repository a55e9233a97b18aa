"""The text of an nginx configuration in front of one instance. Pure.

Facts about nginx are from its documentation (nginx.org/en/docs/http/ngx_http_upstream_module.html and
ngx_http_proxy_module.html), and those about failed servers from its 1.22 source.
"""

from __future__ import annotations

from typing import Final

from orch_deploy import proxy
from orch_deploy.proxy import Options
from orch_deploy.render import render
from orch_deploy.seal import sealed
from orch_deploy.site import Site

TEMPLATE: Final = "nginx.conf.j2"
# From here on HTTP/2 is a directive of its own, and naming it behind `listen` draws a warning.
HTTP2_DIRECTIVE: Final = (1, 25, 1)
# From here on nginx can leave idle connections of clients open for a moment when it reloads.
KEEPS_IDLE: Final = (1, 27, 4)
DEFAULT_LOGS: Final = "/var/log/nginx"


def render_nginx(site: Site, options: Options) -> str:
    """A file for conf.d or sites-enabled; with `options.standalone` a whole configuration.

    Raises:
        ConfigError: a name or a path that cannot stand in such a file.
    """
    proxy.check_plain(site, options)
    version = options.version or (0, 0, 0)
    text = render(
        TEMPLATE,
        site=site,
        options=options,
        stamp=proxy.stamp("nginx", options),
        id=proxy.identifier(site.name),
        limits=proxy.limits(site),
        max_body=proxy.size(proxy.limits(site).max_body_bytes),
        servers=proxy.serving(site),
        private=proxy.private_paths(site),
        repeats_posts=proxy.repeats_posts(site, options),
        access_log=access_log(site, options),
        http2_directive=version >= HTTP2_DIRECTIVE,
        keeps_idle=version >= KEEPS_IDLE,
        keepalive=proxy.keepalive(site, options),
        constants=proxy,
        path=lambda name: path(site, options, name),
    )
    return sealed(text)


def path(site: Site, options: Options, name: str) -> str:
    """Of a standalone nginx's own file: its pid, logs and temporary folders lie beside its configuration."""
    return f"{options.folder or '.'}/nginx-{site.name}.{name}"


def access_log(site: Site, options: Options) -> str:
    """Where requests are logged, or "off"."""
    usual = path(site, options, "access.log") if options.standalone else f"{DEFAULT_LOGS}/orch-{site.name}.log"
    return options.access_log or usual
