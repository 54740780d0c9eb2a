"""Cost models: TOML files with a price and a source for each unit of work, and what a run costs by them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files

from shadowmmu.errors import InputError

DEFAULT = "linux-7.3.4-icount"
PRICES = ("chunk", "leaf", "refault", "flush", "node", "scan")


@dataclass(frozen=True)
class Price:
    """Nanoseconds of one unit of work, what the unit is, and where the number comes from."""

    ns: float
    per: str
    source: str


@dataclass(frozen=True)
class CostModel:
    """A price for each unit of work."""

    name: str
    unit: str
    prices: Mapping[str, Price]

    def modelled_ns(self, counters: Mapping[str, int]) -> float:
        """What unmapping shadows, and refaulting what notifiers took, costs: counters by public name."""
        return self.price_of(work_of(counters))

    def price_of(self, work: Mapping[str, int]) -> float:
        """The price of so many units of work, by the names of ``PRICES``."""
        return sum(self.prices[name].ns * work[name] for name in PRICES)

    def scaled(self, name: str, factor: float) -> CostModel:
        """The same model with one price ``factor`` times as high."""
        price = replace(self.prices[name], ns=self.prices[name].ns * factor)
        return replace(self, prices={**self.prices, name: price})


def work_of(counters: Mapping[str, int]) -> dict[str, int]:
    """The units of work that are priced, from counters by public name."""
    invalidations = counters["tlbi_range_shadow"] + counters["tlbi_vmid_shadow"]
    return {
        "chunk": counters["chunks_shadow"],
        "leaf": counters["leaves_removed"],
        "refault": counters["refaults_caused"],
        "flush": max(0, invalidations - counters["chunks_shadow"]),
        "node": counters["nodes_visited"],
        "scan": counters["descriptors_scanned"],
    }


def load_cost_model(name: str = DEFAULT) -> CostModel:
    """The model of ``lab/costs/NAME.toml``. Raises InputError if it is unknown or incomplete."""
    path = files(__name__) / f"{name}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        prices = {key: Price(**table["price"][key]) for key in PRICES}
        return CostModel(table["name"], table["unit"], prices)
    except FileNotFoundError:
        raise InputError(f"read cost model '{name}', expected a file of lab/costs") from None
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise InputError(f"cost model '{name}': {error}, expected prices {', '.join(PRICES)}") from None
