"""`python -m hybridps.demo`: the same as `hybridps demo`."""

from hybridps.demo.command import main

raise SystemExit(main())
