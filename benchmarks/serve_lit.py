"""LitServe around a model, for serve.py: `python benchmarks/serve_lit.py RUN PORT`."""

import sys
from typing import Any

import litserve  # type: ignore[import-not-found]


class Predict(litserve.LitAPI):  # type: ignore[misc]
    """One row a request, in batches as large as those of `fusetune serve`."""

    def setup(self, device: str) -> None:
        from fusetune import api

        self.tuned = api.load(sys.argv[1])

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # an annotation would make it a query parameter
        return request["rows"][0]

    def batch(self, inputs: Any) -> Any:
        return list(inputs)

    def predict(self, rows: Any) -> Any:
        return self.tuned.predict(list(rows)).table.to_pylist()

    def unbatch(self, output: Any) -> Any:
        return list(output)

    def encode_response(self, output: Any) -> Any:
        return {"predictions": [output]}


if __name__ == "__main__":
    api = Predict(max_batch_size=64, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[2]), generate_client_file=False, num_api_servers=1)
