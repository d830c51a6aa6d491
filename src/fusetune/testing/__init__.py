"""Contract suites, one a registry, for the parts here and for plug-ins.

A suite is a class with one `test_*` method a rule. Derive a class from it in a test file, say what is tested, and
pytest runs every rule by itself, so that one broken rule does not hide the next:

    @pytest.mark.parametrize("make", [MyFusion])
    class TestMyFusion(FusionContract):
        pass

`fusetune.testing.rules` runs a suite without pytest.
"""
