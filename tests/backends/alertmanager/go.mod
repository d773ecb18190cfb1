module inferspan.test/alertmanager

go 1.26

tool github.com/prometheus/alertmanager/cmd/alertmanager

require github.com/prometheus/alertmanager v0.31.1
