// Command dex serves Dex, a real identity provider, from memory and over TLS, for one client and one mock user.
//
// Dex's own command cannot be built here: its storages for SQL and etcd do not compile with what they depend on today.
//
//	dex ISSUER ADDRESS CERTIFICATE KEY CLIENT SECRET REDIRECT WEB
package main

import (
	"context"
	"net/http"
	"os"

	"github.com/dexidp/dex/server"
	"github.com/dexidp/dex/storage"
	"github.com/dexidp/dex/storage/memory"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
)

func main() {
	issuer, address, certificate, key := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	client, secret, redirect, web := os.Args[5], os.Args[6], os.Args[7], os.Args[8]
	logger := logrus.New()
	kept := storage.WithStaticClients(memory.New(logger), []storage.Client{
		{ID: client, Secret: secret, Name: client, RedirectURIs: []string{redirect}},
	})
	kept = storage.WithStaticConnectors(kept, []storage.Connector{
		{ID: "mock", Type: "mockCallback", Name: "mock", ResourceVersion: "1"},
	})
	handler, err := server.NewServer(context.Background(), server.Config{
		Issuer:             issuer,
		Storage:            kept,
		SkipApprovalScreen: true,
		Web:                server.WebConfig{Dir: web},
		Logger:             logger,
		PrometheusRegistry: prometheus.NewRegistry(),
	})
	if err != nil {
		logger.Fatal(err)
	}
	logger.Fatal(http.ListenAndServeTLS(address, certificate, key, handler))
}
