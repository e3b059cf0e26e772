"""Components from their nodes: the one place that calls Hydra's `instantiate`.

Before a component is built, its settings are compared with the annotations of its arguments, so that a value of another
type is refused with the full name of the setting, not by whatever operation meets it first.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import hydra.utils
from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typing_extensions import Unpack, is_typeddict

from tasks.datasets.joint import JointData
from tasks.secrets import hide
from workbench.errors import SettingError
from workbench.members import REPLACED, is_joint, member_cfgs
from workbench.setting_types import LISTS, converted, said, shown, suits

GROUPS = ("modality", "task", "backbone", "optimizer", "scheduler", "callbacks", "logger", "trainer")
PLACES = ("modality.augment", "callbacks", "logger")  # their entries are components
_REFERENCE = re.compile(r"\$\{(\w[\w.]*)\}")
_NO_DEFAULT = inspect.Parameter.empty


def instantiate(node: Any, **arguments: Any) -> Any:
    """Build the component that a node describes, as Hydra's function of this name; its settings are checked first.

    Raises:
        SettingError: a setting has another type than its argument.
    """
    check_types(node)
    return hydra.utils.instantiate(node, **arguments)


def check_settings(cfg: DictConfig) -> None:
    """Check the types of all settings of a run, before any of its components is built.

    Raises:
        SettingError: a setting has another type than its argument.
    """
    joint = is_joint(cfg)
    for place in PLACES:
        for name, node in (OmegaConf.select(cfg, place) or {}).items():
            if node and not (isinstance(node, DictConfig) and "_target_" in node):
                told = OmegaConf.to_container(node, resolve=True) if isinstance(node, Container) else node
                raise SettingError(
                    f"{place}.{name} must be a component with a _target_ or null, not {shown(told)}"
                )
    for group in GROUPS:
        if not (joint and group in ("modality", "task")):
            check_types(cfg.get(group))
    if not joint:
        return
    _check_arguments(cfg.task.data, JointData, "", without=REPLACED)
    for name, member in member_cfgs(cfg).items():
        for group in ("modality", "task"):
            check_types(member[group], f"task.members.{name}.")


def check_types(node: Any, prefix: str = "") -> None:
    """Check the types of the settings of a node's component, if it is one, and of all components below it.

    Values that are accepted in another type (`setting_types`) are converted in place.

    Args:
        node: a node of the configuration, or anything else, which is not checked.
        prefix: what the names of settings begin with in messages.

    Raises:
        SettingError: a setting has another type than its argument.
    """
    if isinstance(node, DictConfig) and not node._is_none():
        target = _value(node, "_target_")
        make = _target(target) if isinstance(target, str) else None
        if make is not None:
            _check_arguments(node, make, prefix)
    for child in _children(node):
        check_types(child, prefix)


def _children(node: Any) -> Iterator[Container]:
    """The nodes below a node that are lists or dictionaries, references resolved; without those that lack a value."""
    if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_missing():
        return
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        child = _value(node, key)
        if isinstance(child, Container):
            yield child


def _value(node: Any, key: Any) -> Any:
    """The value of a key, references resolved; None if there is none."""
    try:
        return node[key] if isinstance(node, ListConfig) else node.get(key)
    except OmegaConfBaseException:  # `instantiate` says what is wrong
        return None


def _target(name: str) -> Callable[..., Any] | None:
    try:
        found: Callable[..., Any] = hydra.utils.get_object(name)
        return found
    except Exception:  # `instantiate` says what is wrong
        return None


def _check_arguments(
    node: DictConfig, make: Callable[..., Any], prefix: str, without: tuple[str, ...] = ()
) -> None:
    arguments = arguments_of(make)
    for key in (str(key) for key in node if key in arguments and key not in without):
        kind, default = arguments[key]
        written: Any = node._get_node(key)
        try:
            found = node[key]
            value: Any = (
                OmegaConf.to_container(found, resolve=True) if isinstance(found, Container) else found
            )
        except OmegaConfBaseException:  # `instantiate` says what is wrong
            continue
        # A null that is referred to may be replaced before the component is built, as `task.monitor` is.
        if value is None and (default is None or written._is_interpolation()):
            continue
        if not suits(value, kind):
            name = prefix + _name(node, key)
            raise SettingError(f"{name} must be {said(kind)}, not {shown(hide({name: value})[name])}")
        now = converted(value, kind)
        if now is not value and not written._is_interpolation():
            node[key] = now
        for section, part in _sections(kind, found):
            _check_arguments(part, section, prefix)


def _sections(kind: Any, found: Any) -> Iterator[tuple[type, DictConfig]]:
    """The mappings in a value that hold the arguments of a class, `Annotated[Mapping[str, Any], CLASS]`, with it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated and isinstance(found, DictConfig):
        yield from ((about, found) for about in inner[1:] if isinstance(about, type))
    elif origin in (Union, UnionType):
        for one in inner:
            yield from _sections(one, found)
    elif origin in LISTS and inner:
        for child in _children(found):
            yield from _sections(inner[0], child)


def _name(node: DictConfig, key: Any) -> str:
    """The full name of a setting; if its value is a reference to another setting, the name of that."""
    name, root = str(node._get_full_key(key)), node._get_root()
    written: Any = node._get_node(key)
    for _ in range(10):
        refers = _REFERENCE.fullmatch(str(written._value())) if written._is_interpolation() else None
        if refers is None:
            break
        name = refers[1]
        above, _, last = name.rpartition(".")
        parent = OmegaConf.select(root, above) if above else root
        written = parent._get_node(last) if isinstance(parent, DictConfig) else None
        if written is None:
            break
    return name


@lru_cache(maxsize=256)
def arguments_of(make: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Maps the annotated arguments of a class or function to their annotations and defaults.

    Keywords that a constructor passes on are those of its `TypedDict` (`**settings: Unpack[…]`), or else of its base
    classes.
    """
    found: dict[str, tuple[Any, Any]] = {}
    if not isinstance(make, type):
        _add_arguments(make, found)
        return found
    for owner in make.__mro__:
        init = vars(owner).get("__init__")
        if inspect.isfunction(init) and not _add_arguments(init, found):
            break
    return found


def _add_arguments(make: Callable[..., Any], found: dict[str, tuple[Any, Any]]) -> bool:
    """Add the arguments of a function; returns whether it takes other keywords, too, and does not say which."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return False
    for parameter in parameters:
        kind = _resolved(parameter.annotation, make)
        if parameter.kind is parameter.VAR_KEYWORD:
            (typed,) = get_args(kind) if get_origin(kind) is Unpack else (None,)
            if not is_typeddict(typed):
                return True
            for name, inner in get_type_hints(typed, include_extras=True).items():
                found.setdefault(name, (inner, _NO_DEFAULT))
        elif kind is not _NO_DEFAULT and parameter.kind is not parameter.VAR_POSITIONAL:
            found.setdefault(parameter.name, (kind, parameter.default))
    return False


def _resolved(annotation: Any, make: Callable[..., Any]) -> Any:
    """An annotation that may be a string; `empty` if it cannot be resolved."""
    own = getattr(inspect.unwrap(make), "__globals__", {})
    try:
        return get_type_hints(
            SimpleNamespace(__annotations__={"it": annotation}), globalns=own, include_extras=True
        )["it"]
    except Exception:  # a name that is known to type checkers only
        return _NO_DEFAULT
