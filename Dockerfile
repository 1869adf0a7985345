# The algorithm image for grand-challenge.org. Its two last stages are the platform's two ways to call a container, of
# which an image is one: invoke (one server for many cases; built by default) or, by --target exec, exec (one process
# for each case).
FROM --platform=linux/amd64 pytorch/pytorch:2.12.0-cuda12.6-cudnn9-runtime AS common
USER root
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache
# A name in /etc/passwd and a home: the platform refuses root and looks the user up.
RUN groupadd --system algorithm \
    && useradd --system --gid algorithm --create-home --no-log-init algorithm \
    && mkdir -p /input /output /opt/ml/model \
    && chown algorithm:algorithm /output

# The tested versions, but the base image's own PyTorch and the setuptools that only PyTorch needs: pip fails rather than
# replace it. The base marks its Python as the distribution's, hence PIP_BREAK_SYSTEM_PACKAGES.
WORKDIR /opt/app
COPY requirements.txt constraints.txt ./
RUN python3 -c 'import torch; print(f"torch=={torch.__version__}")' >torch.txt \
    && grep -vE '^(torch|setuptools)==' constraints.txt >others.txt \
    && PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore \
       python3 -m pip install --no-cache-dir -r requirements.txt -c others.txt -c torch.txt \
    && rm torch.txt others.txt

COPY --chown=algorithm:algorithm algorithm/ algorithm/
USER algorithm
ARG VERSION=unknown
LABEL org.opencontainers.image.title="COVID-19 lesion segmentation on chest CT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM common AS exec
LABEL org.grand-challenge.api-method="exec"
ENTRYPOINT ["python3", "-m", "algorithm", "exec"]

FROM common AS invoke
LABEL org.grand-challenge.api-method="invoke"
ENTRYPOINT ["python3", "-m", "algorithm", "serve"]
