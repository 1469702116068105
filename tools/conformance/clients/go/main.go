// Command clients drives a Workload API with go-spiffe, as Go workloads do.
//
// It is called with the address of the API and the ids of two workloads that this process is both of,
// prints one line per thing that works, and exits with 1 at the first that does not.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 4 && args[0] == "watch" {
		return watch(ctx, workloadapi.WithAddr(args[1]), args[2], args[3])
	}
	if len(args) != 3 {
		return errors.New("usage: clients ADDRESS ID ID | clients watch ADDRESS BEFORE AFTER")
	}
	api := workloadapi.WithAddr(args[0])
	first, err := spiffeid.FromString(args[1])
	if err != nil {
		return err
	}
	second, err := spiffeid.FromString(args[2])
	if err != nil {
		return err
	}
	for _, check := range []struct {
		name string
		run  func(context.Context, workloadapi.ClientOption, spiffeid.ID, spiffeid.ID) error
	}{
		{"x509 context", x509Context},
		{"mutual tls", mutualTLS},
		{"stranger refused", strangerRefused},
		{"jwt source", jwtSource},
		{"jwt validation by the api", jwtValidation},
		{"x509 bundles", x509Bundles},
	} {
		if err := check.run(ctx, api, first, second); err != nil {
			return fmt.Errorf("%s: %w", check.name, err)
		}
		fmt.Println("ok:", check.name)
	}
	return nil
}

func x509Context(ctx context.Context, api workloadapi.ClientOption, first, second spiffeid.ID) error {
	got, err := workloadapi.FetchX509Context(ctx, api)
	if err != nil {
		return err
	}
	ids := idsOf(got)
	want := []string{first.String(), second.String()}
	sort.Strings(want)
	if strings.Join(ids, " ") != strings.Join(want, " ") {
		return fmt.Errorf("ids are %v", ids)
	}
	for _, svid := range got.SVIDs {
		id, _, err := x509svid.Verify(svid.Certificates, got.Bundles)
		if err != nil {
			return err
		}
		if id != svid.ID {
			return fmt.Errorf("certificate of %s is for %s", svid.ID, id)
		}
	}
	return nil
}

func source(ctx context.Context, api workloadapi.ClientOption, id spiffeid.ID) (*workloadapi.X509Source, error) {
	pick := func(svids []*x509svid.SVID) *x509svid.SVID {
		for _, svid := range svids {
			if svid.ID == id {
				return svid
			}
		}
		return nil
	}
	return workloadapi.NewX509Source(ctx,
		workloadapi.WithClientOptions(api), workloadapi.WithDefaultX509SVIDPicker(pick))
}

// echo listens as one workload and gives back what a client of the other id sends.
func echo(ctx context.Context, api workloadapi.ClientOption, as, admits spiffeid.ID) (net.Listener, *workloadapi.X509Source, error) {
	own, err := source(ctx, api, as)
	if err != nil {
		return nil, nil, err
	}
	config := tlsconfig.MTLSServerConfig(own, own, tlsconfig.AuthorizeID(admits))
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		return nil, nil, err
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				_, _ = io.Copy(connection, connection)
			}()
		}
	}()
	return listener, own, nil
}

func mutualTLS(ctx context.Context, api workloadapi.ClientOption, first, second spiffeid.ID) error {
	listener, server, err := echo(ctx, api, first, second)
	if err != nil {
		return err
	}
	defer server.Close()
	defer listener.Close()
	own, err := source(ctx, api, second)
	if err != nil {
		return err
	}
	defer own.Close()

	mode := spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeID(first), own)
	connection, err := spiffetls.DialWithMode(ctx, "tcp", listener.Addr().String(), mode)
	if err != nil {
		return err
	}
	defer connection.Close()
	peer, err := spiffetls.PeerIDFromConn(connection)
	if err != nil {
		return err
	}
	if peer != first {
		return fmt.Errorf("the server is %s", peer)
	}
	if _, err := fmt.Fprintln(connection, "hello"); err != nil {
		return err
	}
	line, err := bufio.NewReader(connection).ReadString('\n')
	if err != nil || line != "hello\n" {
		return fmt.Errorf("answer %q: %w", line, err)
	}
	return nil
}

func strangerRefused(ctx context.Context, api workloadapi.ClientOption, first, second spiffeid.ID) error {
	listener, server, err := echo(ctx, api, first, second)
	if err != nil {
		return err
	}
	defer server.Close()
	defer listener.Close()
	// The server admits only the second; this is the first.
	mode := spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeID(first), server)
	connection, err := spiffetls.DialWithMode(ctx, "tcp", listener.Addr().String(), mode)
	if err != nil {
		return nil
	}
	defer connection.Close()
	if _, err := bufio.NewReader(connection).ReadString('\n'); err == nil {
		return errors.New("the server talks to a stranger")
	}
	return nil
}

func jwtSource(ctx context.Context, api workloadapi.ClientOption, first, second spiffeid.ID) error {
	own, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(api))
	if err != nil {
		return err
	}
	defer own.Close()
	for _, id := range []spiffeid.ID{first, second} {
		params := jwtsvid.Params{Subject: id, Audience: "one", ExtraAudiences: []string{"two"}}
		svid, err := own.FetchJWTSVID(ctx, params)
		if err != nil {
			return err
		}
		if svid.ID != id {
			return fmt.Errorf("the token of %s is for %s", id, svid.ID)
		}
		for _, audience := range []string{"one", "two"} {
			if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), own, []string{audience}); err != nil {
				return err
			}
		}
		if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), own, []string{"three"}); err == nil {
			return errors.New("the token is good for any audience")
		}
	}
	all, err := own.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: "one"})
	if err != nil {
		return err
	}
	if len(all) != 2 {
		return fmt.Errorf("%d tokens for two identities", len(all))
	}
	return nil
}

func jwtValidation(ctx context.Context, api workloadapi.ClientOption, first, _ spiffeid.ID) error {
	svid, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Subject: first, Audience: "one"}, api)
	if err != nil {
		return err
	}
	validated, err := workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), "one", api)
	if err != nil {
		return err
	}
	if validated.ID != first {
		return fmt.Errorf("validated as %s", validated.ID)
	}
	if _, err := workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), "two", api); err == nil {
		return errors.New("validated for another audience")
	}
	return nil
}

func x509Bundles(ctx context.Context, api workloadapi.ClientOption, first, _ spiffeid.ID) error {
	bundles, err := workloadapi.FetchX509Bundles(ctx, api)
	if err != nil {
		return err
	}
	bundle, err := bundles.GetX509BundleForTrustDomain(first.TrustDomain())
	if err != nil {
		return err
	}
	if len(bundle.X509Authorities()) == 0 {
		return errors.New("no authorities")
	}
	return nil
}

// watch prints a line once the id before is there, and ends when the other one is there too.
func watch(ctx context.Context, api workloadapi.ClientOption, before, after string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watcher := &watcher{before: before, after: after, cancel: cancel}
	err := workloadapi.WatchX509Context(ctx, watcher, api)
	if watcher.done {
		fmt.Println("ok: watch")
		return nil
	}
	return fmt.Errorf("the update did not come: %w", err)
}

type watcher struct {
	before, after string
	cancel        context.CancelFunc
	told, done    bool
}

func (w *watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	ids := strings.Join(idsOf(update), " ")
	if strings.Contains(ids, w.before) && !w.told {
		w.told = true
		fmt.Println("watching")
	}
	if strings.Contains(ids, w.after) {
		w.done = true
		w.cancel()
	}
}

func (w *watcher) OnX509ContextWatchError(error) {}

func idsOf(got *workloadapi.X509Context) []string {
	var ids []string
	for _, svid := range got.SVIDs {
		ids = append(ids, svid.ID.String())
	}
	sort.Strings(ids)
	return ids
}
