"""What a reload is admitted with."""

from __future__ import annotations

from child import run_child


def test_a_reload_is_planned_with_the_memory_of_the_model_that_goes() -> None:
    """One that fits only because the old model goes is tried: what that one took is counted as free."""
    first, second = run_child(
        """
        import os, pickle, tempfile
        import mlup_stream as mlup
        from mlup_stream.ml import model as module
        freed = []
        plan_load = module.plan_load
        def noted(*arguments, freed_bytes=0, **options):
            freed.append(freed_bytes >> 20)
            return plan_load(*arguments, freed_bytes=freed_bytes, **options)
        module.plan_load = noted
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.pkl")
            with open(path, "wb") as file:
                pickle.dump(b"x" * (64 << 20), file)
            up = mlup.UP(
                conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path}, memory_learned=False)
            )
            up.ml.load()
            up.ml.load(force_loading=True)
        answer(freed)
        """
    )
    assert first == 0
    assert second >= 60
