"""Where tiles lie on the earth: centres, distances in metres, and clusters of tiles that lie close together."""

import numpy as np
import pyproj
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from common.datasets.label_grids import profile_of
from common.errors import InputError

EARTH = 6_371_008.8  # metres, the mean radius
SLACK = 1.006  # a sphere is up to .56 % off the ellipsoid: near pairs are looked for in a little more, then measured
GEOD = pyproj.Geod(ellps="WGS84")


def place_of(path) -> tuple[float, float]:
    """(latitude, longitude) in degrees (WGS 84) of a raster's centre. InputError: it has no georeference."""
    profile = profile_of(path)
    if profile["crs"] is None:
        raise InputError(f"{path}: no georeference says where it lies; give metadata.csv with centroid_lat and _lon")
    t, col, row = profile["transform"], profile["width"] / 2, profile["height"] / 2
    x, y = t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f
    try:
        to_degrees = pyproj.Transformer.from_crs(profile["crs"].to_wkt(), "EPSG:4326", always_xy=True)
        longitude, latitude = to_degrees.transform(x, y)
    except pyproj.exceptions.ProjError as error:
        raise InputError(f"{path}: its CRS has no degrees ({str(error)[:200]}); reproject it") from error
    if not (np.isfinite(longitude) and np.isfinite(latitude)):
        raise InputError(f"{path}: its CRS does not reach where its georeference lies; correct one of them")
    return float(latitude), float(longitude)


def on_sphere(latitude, longitude) -> np.ndarray:
    """(n, 3) float64 in metres from the centre of a spherical earth."""
    lat, lon = np.radians(np.asarray(latitude, float)), np.radians(np.asarray(longitude, float))
    return EARTH * np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def chord(distance: float) -> float:
    """Straight line through the earth between two places that far apart on it (metres)."""
    return 2 * EARTH * np.sin(min(distance / (2 * EARTH), np.pi / 2))


def geodesic(latitude_a, longitude_a, latitude_b, longitude_b) -> np.ndarray:
    """Metres on the ellipsoid between places in pairs."""
    return np.asarray(GEOD.inv(longitude_a, latitude_a, longitude_b, latitude_b)[2])


def near_pairs(latitude, longitude, limit: float) -> np.ndarray:
    """(m, 2) int: pairs i < j of places at most `limit` metres apart on the ellipsoid, sorted."""
    lat, lon = np.asarray(latitude, float), np.asarray(longitude, float)
    pairs = cKDTree(on_sphere(lat, lon)).query_pairs(chord(limit * SLACK) + 1e-6, output_type="ndarray")
    pairs = pairs[np.lexsort(pairs.T[::-1])].reshape(-1, 2)
    return pairs[geodesic(lat[pairs[:, 0]], lon[pairs[:, 0]], lat[pairs[:, 1]], lon[pairs[:, 1]]) <= limit]


def nearest_pair(latitude, longitude, first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """(i of first, j of second, metres) of the two places that lie nearest; first, second: indices of both sides."""
    lat, lon = np.asarray(latitude, float), np.asarray(longitude, float)
    points = on_sphere(lat, lon)
    # the sphere may mistake the nearest by half a percent, so that a few candidates of each place are measured
    count = min(4, len(second))
    _, index = cKDTree(points[second]).query(points[first], k=[*range(1, count + 1)])
    i, j = np.repeat(first, count), second[index.ravel()]
    metres = geodesic(lat[i], lon[i], lat[j], lon[j])
    best = int(np.argmin(metres))
    return int(i[best]), int(j[best]), float(metres[best])


def cluster_places(latitude, longitude, limit: float) -> np.ndarray:
    """(n,) int: number of the cluster of each place, where places at most `limit` metres apart are in one."""
    pairs, n = near_pairs(latitude, longitude, limit), len(latitude)
    graph = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def region_names(latitude, longitude, limit: float) -> list[str]:
    """Name of each place's cluster: where the first place of it lies, as in 71.614N_081.264E."""
    cluster, named = cluster_places(latitude, longitude, limit), {}
    for k, lat, lon in zip(cluster.tolist(), latitude, longitude, strict=True):
        where = f"{abs(lat):06.3f}{'N' if lat >= 0 else 'S'}_{abs(lon):07.3f}{'E' if lon >= 0 else 'W'}"
        named.setdefault(k, where)
    return [named[k] for k in cluster.tolist()]
