"""The published out-of-fold sets, read with plain pandas: what the tests compare the project's own readers with."""

import pandas as pd

OUTPUTS = ["Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g"]


def load_published(folder):
    """ids, target (357, 5), {name: pred (357, 5)} and date-and-state groups of the published sets, read with pandas."""
    table = pd.read_csv(folder / "train_all_357_labels.csv")
    table["id"] = table["sample_id"].str.split("__").str[0]
    wide = table.pivot(index="id", columns="target_name", values="target")[OUTPUTS]
    meta = table.drop_duplicates("id").set_index("id").loc[wide.index]
    groups = (meta["Sampling_Date"] + " " + meta["State"]).to_numpy()
    preds = {
        path.stem: pd.read_csv(path).set_index("id").loc[wide.index, OUTPUTS].to_numpy()
        for path in sorted((folder / "oof").glob("*.csv"))
    }
    return list(wide.index), wide.to_numpy(), preds, groups
