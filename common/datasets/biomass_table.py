"""The tables of Kaggle `csiro-biomass`: train.csv and test.csv, a line per target, to rows, a line per photo."""

from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import InputError
from common.table_files import paths_inside, read_csv
from common.text_files import read_text

OUTPUTS = ("Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g")
STATES = ("NSW", "Tas", "Vic", "WA")
MONTHS = (1, 2, 4, 5, 6, 7, 8, 9, 10, 11)
# the eight groups of the recipes; anything unseen is mixed
SPECIES = {
    "Ryegrass_Clover": "ryegrass-clover",
    "Ryegrass": "ryegrass",
    "Phalaris_Clover": "phalaris-clover",
    "Clover": "clover",
    "WhiteClover": "clover",
    "SubcloverLosa": "clover",
    "SubcloverDalkeith": "clover",
    "Fescue": "fescue",
    "Fescue_CrumbWeed": "fescue",
    "Lucerne": "lucerne",
}
SPECIES_GROUPS = (*dict.fromkeys(SPECIES.values()), "phalaris-mixtures", "mixed")
TRAIN_COLUMNS = ("sample_id", "image_path", "Sampling_Date", "State", "Species", "target_name", "target")
TEST_COLUMNS = ("sample_id", "image_path", "target_name")


def species_group(species: str) -> str:
    if species in SPECIES:
        return SPECIES[species]
    return "phalaris-mixtures" if species.startswith("Phalaris") else "mixed"


def read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A long table whose sample ids are `<id>__<target>`, each once. InputError naming the file and what is wrong."""
    if not path.is_file():
        raise InputError(f"{path}: not found; put the competition's files there or name their folder with --data")
    table = read_csv(path, text=("sample_id", "image_path", "Sampling_Date"), remedy="download it again")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise InputError(f"{path}: column {', '.join(missing)} is missing; found {', '.join(table.columns)}")
    if not len(table):
        raise InputError(f"{path}: has no rows; download it again")
    unknown = sorted(set(table["target_name"].fillna("").astype(str)) - set(OUTPUTS))
    if unknown:
        raise InputError(f"{path}: unknown target name {', '.join(unknown)}; known are {', '.join(OUTPUTS)}")
    if table["sample_id"].isna().any():
        raise InputError(f"{path}: {table['sample_id'].isna().sum()} lines have no sample_id; download it again")
    twice = table["sample_id"][table["sample_id"].duplicated()]
    if len(twice):
        times = int((table["sample_id"] == twice.iloc[0]).sum())
        raise InputError(f"{path}: {twice.iloc[0]} stands there {times} times; every id must be there once")
    return table.assign(id=table["sample_id"].str.rsplit("__", n=1).str[0])


def parse_dates(text: pd.Series, path: Path) -> pd.Series:
    """Dates written 2015/9/4 or 9/4/2015 (month first). InputError naming the first that is neither."""
    parts = text.astype(str).str.strip().str.extract(r"^(\d{1,4})[/-](\d{1,2})[/-](\d{1,4})$")
    year_first = parts[0].str.len() == 4
    year = parts[0].where(year_first, parts[2])
    month = parts[1].where(year_first, parts[0])
    day = parts[2].where(year_first, parts[1])
    dates = pd.to_datetime(year + "-" + month + "-" + day, format="%Y-%m-%d", errors="coerce")
    if dates.isna().any():
        raise InputError(f"{path}: {text[dates.isna()].iloc[0]!r} is not a date like 2015/9/4 or 9/4/2015; correct it")
    return dates


def widen(table: pd.DataFrame, path: Path, allow_missing: bool) -> pd.DataFrame:
    """Targets in grams, a line per id. InputError for a missing target unless allowed (then NaN, and counted)."""
    values = pd.to_numeric(table["target"], errors="coerce")
    text = table["target"].notna() & values.isna()
    if text.any():
        raise InputError(
            f"{path}: target {table['target'][text].iloc[0]!r} of {table['sample_id'][text].iloc[0]} is no number"
        )
    wide = table.assign(target=values).pivot(index="id", columns="target_name", values="target")
    wide = wide.reindex(columns=list(OUTPUTS)).astype(np.float64)
    absent = wide.isna()
    if absent.to_numpy().any():
        row, column = np.argwhere(absent.to_numpy())[0]
        if not allow_missing:
            raise InputError(
                f"{path}: {wide.index[row]} has no {OUTPUTS[column]} ({int(absent.to_numpy().sum())} targets missing); "
                "complete the table or give --allow-missing-targets"
            )
        print(f"{path}: {int(absent.to_numpy().sum())} missing targets are masked")
    return wide.reset_index()


def check_photos(rows: pd.DataFrame, table: Path) -> None:
    missing = [path for path in rows["path"] if not Path(path).is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: photo not found ({len(missing)} of {len(rows)} that {table} names); "
            "complete the folder or leave them out with --drop-ids FILE"
        )


def read_rows(data: Path, *, allow_missing: bool = False, drop_ids: list[str] = (), photos: bool = True):
    """Training rows: id, path, date, month, state, species, species_group, ndvi, height, targets in grams.

    photos=False does not ask that the photos are there (labels alone serve folds and strangers' predictions).
    data may be the folder, or a table file itself.
    """
    path = data / "train.csv" if data.is_dir() else data
    table = read_table(path, TRAIN_COLUMNS)
    first = table.drop_duplicates("id").set_index("id")
    wide = widen(table, path, allow_missing)
    facts = first.loc[wide["id"]].reset_index()
    date = parse_dates(facts["Sampling_Date"], path)
    rows = pd.DataFrame(
        {
            "id": wide["id"],
            "path": paths_inside(path.parent, facts["image_path"], path),
            "date": date,
            "month": date.dt.month,
            "state": facts["State"].astype(str),
            "species": facts["Species"].astype(str),
            "species_group": facts["Species"].fillna("").astype(str).map(species_group),
            "ndvi": pd.to_numeric(facts.get("Pre_GSHH_NDVI"), errors="coerce"),
            "height": pd.to_numeric(facts.get("Height_Ave_cm"), errors="coerce"),
        }
    )
    rows["date_state"] = date.dt.strftime("%Y-%m-%d") + "_" + rows["state"]
    rows = pd.concat([rows, wide[list(OUTPUTS)]], axis=1)
    rows = drop_rows(rows, drop_ids, path)
    if photos:
        check_photos(rows, path)
    return rows


def dropped_ids(settings: dict) -> list[str]:
    """Ids of the file of --drop-ids, one a line; none without it. InputError where the file is not there."""
    if not settings["drop_ids"]:
        return []
    path = Path(settings["drop_ids"])
    if not path.is_file():
        raise InputError(f"--drop-ids {path}: no such file")
    return read_text(path).split()


def drop_rows(rows: pd.DataFrame, ids: list[str], path: Path) -> pd.DataFrame:
    """Rows without these ids. InputError for an id that is not there."""
    unknown = sorted(set(ids) - set(rows["id"]))
    if unknown:
        raise InputError(f"--drop-ids: {unknown[0]} is not an id of {path} ({len(unknown)} unknown)")
    return rows[~rows["id"].isin(ids)].reset_index(drop=True)


def read_test(data: Path) -> pd.DataFrame:
    """Test rows: id and path, in the order of test.csv. No metadata is looked for."""
    path = data / "test.csv"
    table = read_table(path, TEST_COLUMNS).drop_duplicates("id")
    paths = paths_inside(data, table["image_path"], path)
    return pd.DataFrame({"id": table["id"], "path": paths}).reset_index(drop=True)


def one_hot(values: pd.Series, classes: tuple) -> np.ndarray:
    """(n, K) float32; a value outside the classes gives a row of zeros, which carries no auxiliary loss."""
    return (values.to_numpy()[:, None] == np.array(classes, dtype=object)[None]).astype(np.float32)


def aux_targets(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Labels of the auxiliary heads, training only."""
    return {
        "state": one_hot(rows["state"], STATES),
        "month": one_hot(rows["month"], MONTHS),
        "species": one_hot(rows["species_group"], SPECIES_GROUPS),
    }


AUX_CLASSES = {"state": len(STATES), "month": len(MONTHS), "species": len(SPECIES_GROUPS)}
