"""scikit-learn's main families, trained here, unpickled in place with every payload left in the file: the same predictions.

Arrays that are not aligned are left there as well, large and small, and mapped read-only in two of the three rounds, so that an
estimator that insists on either is found. (`NEEDS_ALIGNMENT` has those that were; their arrays are copied.)
"""

from __future__ import annotations

from pathlib import Path

import pytest
from child import run_child

pytest.importorskip("sklearn", reason="the estimators are scikit-learn's")

CODE = """
import io, pickle, warnings
warnings.simplefilter("ignore")
import numpy
from sklearn import cluster, decomposition, ensemble, feature_extraction, gaussian_process, impute, kernel_ridge, linear_model
from sklearn import mixture, naive_bayes, neighbors, neural_network, pipeline, preprocessing, svm, tree, calibration, isotonic
from sklearn import discriminant_analysis, kernel_approximation, random_projection, cross_decomposition, covariance, compose
from sklearn.base import is_regressor
from mlup_stream.delivery.kinds import MappingMode
from mlup_stream.delivery.terms import Terms
from mlup_stream.delivery.view import View
from mlup_stream.formats.pickles.frames import scan
from mlup_stream.ml.binarization.pickles.placing import Placer
from mlup_stream.ml.binarization.pickles.in_place_unpickler import InPlaceUnpickler

random = numpy.random.default_rng(0)
X = random.random((400, 8))
labels = (X[:, 0] + X[:, 1] * X[:, 2] > 0.7).astype(int) + (X[:, 3] > 0.8)
values = X @ random.random(8)

MODELS = [
    linear_model.LogisticRegression(), linear_model.Ridge(), linear_model.ElasticNet(), linear_model.SGDClassifier(),
    linear_model.BayesianRidge(), linear_model.RidgeCV(), linear_model.Perceptron(), linear_model.HuberRegressor(),
    svm.SVC(probability=False), svm.SVR(), svm.LinearSVC(), svm.OneClassSVM(), svm.NuSVC(nu=0.1),
    neighbors.KNeighborsClassifier(), neighbors.KNeighborsRegressor(algorithm="ball_tree"), neighbors.NearestCentroid(),
    neighbors.KernelDensity(), neighbors.LocalOutlierFactor(novelty=True), neighbors.RadiusNeighborsRegressor(10.0),
    tree.DecisionTreeClassifier(), tree.ExtraTreeRegressor(), ensemble.RandomForestClassifier(5),
    ensemble.RandomForestRegressor(5), ensemble.ExtraTreesClassifier(5), ensemble.GradientBoostingClassifier(n_estimators=5),
    ensemble.GradientBoostingRegressor(n_estimators=5), ensemble.HistGradientBoostingClassifier(max_iter=5),
    ensemble.HistGradientBoostingRegressor(max_iter=5), ensemble.IsolationForest(n_estimators=5),
    ensemble.AdaBoostClassifier(n_estimators=5), ensemble.BaggingRegressor(n_estimators=3),
    ensemble.VotingClassifier([("a", tree.DecisionTreeClassifier()), ("b", svm.SVC())]),
    neural_network.MLPClassifier(max_iter=20), neural_network.MLPRegressor(max_iter=20), naive_bayes.GaussianNB(),
    naive_bayes.MultinomialNB(), gaussian_process.GaussianProcessRegressor(), gaussian_process.GaussianProcessClassifier(),
    cluster.KMeans(3, n_init=1), cluster.MiniBatchKMeans(3, n_init=1), cluster.MeanShift(), cluster.Birch(),
    mixture.GaussianMixture(2), mixture.BayesianGaussianMixture(n_components=2), decomposition.PCA(3), decomposition.NMF(2),
    decomposition.FastICA(2), decomposition.TruncatedSVD(2), decomposition.LatentDirichletAllocation(2, max_iter=2),
    decomposition.KernelPCA(2), discriminant_analysis.LinearDiscriminantAnalysis(),
    discriminant_analysis.QuadraticDiscriminantAnalysis(), kernel_ridge.KernelRidge(), kernel_approximation.Nystroem(),
    random_projection.GaussianRandomProjection(3), cross_decomposition.PLSRegression(2), covariance.EllipticEnvelope(),
    preprocessing.StandardScaler(), preprocessing.QuantileTransformer(n_quantiles=50), preprocessing.KBinsDiscretizer(5),
    preprocessing.PolynomialFeatures(2), preprocessing.SplineTransformer(),
    preprocessing.OneHotEncoder(handle_unknown="ignore"), impute.KNNImputer(),
    pipeline.make_pipeline(preprocessing.StandardScaler(), decomposition.PCA(4), linear_model.LogisticRegression()),
    compose.ColumnTransformer([("s", preprocessing.StandardScaler(), [0, 1]), ("b", preprocessing.Binarizer(), [2])]),
    calibration.CalibratedClassifierCV(svm.LinearSVC(), cv=2),
]

def said(model):
    found = []
    for name in ("predict", "predict_proba", "decision_function", "score_samples", "transform"):
        if hasattr(model, name):
            try:
                result = getattr(model, name)(X)
            except (AttributeError, NotImplementedError):
                continue
            found.append((name, numpy.asarray(result.todense() if hasattr(result, "todense") else result).tobytes()))
    return found

def loaded(data, mapping):
    with open(path, "wb") as file:
        file.write(data)
    view = View(path)
    with view.open() as file:
        placer = Placer(Terms(mapping=mapping), view, file, allowance_bytes=0)
        model = InPlaceUnpickler(file, placer, fetched=scan(path).fetched, late_bytes=1).load()
    view.release()
    return model, placer.placement().mapped_bytes

wrong, mapped_bytes = [], 0
for model in MODELS:
    name = type(model).__name__
    model.fit(X, values if is_regressor(model) else labels)
    expected = said(model)
    assert expected, name
    # The length of the text in front moves every payload to another offset.
    ways = [(4, MappingMode.READ_ONLY), (5, MappingMode.COPY_ON_WRITE), (3, MappingMode.READ_ONLY)]
    for round, (protocol, mapping) in enumerate(ways):
        try:
            (_, found), mapped = loaded(pickle.dumps(("x" * (len(name) % 8 + round), model), protocol), mapping)
            mapped_bytes += mapped
            if said(found) != expected:
                wrong.append(f"{name}, protocol {protocol}: other predictions")
        except Exception as error:
            wrong.append(f"{name}, protocol {protocol}: {error!r}")
answer([wrong, len(MODELS), mapped_bytes])
"""


def test_every_family_predicts_the_same_from_the_file(tmp_path: Path) -> None:
    """Predictions, probabilities, scores and transformations are equal bit for bit, from read-only and writable maps."""
    wrong, models, mapped_bytes = run_child(CODE, path=str(tmp_path / "model.pkl"), timeout_seconds=250)
    assert wrong == []
    assert models > 60
    assert mapped_bytes > 100_000
