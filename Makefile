# Short names for infra/bootstrap.py, which needs only Python >= 3.11.
.PHONY: demo test check
demo:
	python3 infra/bootstrap.py demo
test:
	python3 infra/bootstrap.py test
check:
	python3 infra/bootstrap.py check
