"""Contract suites for built-in parts and plug-ins, one for each registry.

A suite is a class with one `test_*` method for each rule. Derive a class from it in a test file and parametrise what is
tested. Pytest runs every rule separately, so that one broken rule does not hide the next:

    @pytest.mark.parametrize("make", [MyFusion])
    class TestMyFusion(FusionContract):
        pass

`fusetune.testing.rules.check` runs a suite without pytest.
"""
