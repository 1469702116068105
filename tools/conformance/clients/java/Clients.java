import io.spiffe.bundle.x509bundle.X509Bundle;
import io.spiffe.provider.SpiffeSslContextFactory;
import io.spiffe.provider.SpiffeSslContextFactory.SslContextOptions;
import io.spiffe.spiffeid.SpiffeId;
import io.spiffe.spiffeid.TrustDomain;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.svid.x509svid.X509SvidValidator;
import io.spiffe.workloadapi.DefaultJwtSource;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.DefaultX509Source;
import io.spiffe.workloadapi.JwtSource;
import io.spiffe.workloadapi.JwtSourceOptions;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import io.spiffe.workloadapi.X509Source;
import java.io.IOException;
import java.net.InetAddress;
import java.security.cert.X509Certificate;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;

/**
 * Drives a Workload API with java-spiffe, as workloads in Java do.
 *
 * <p>Called with the address of the API and the ids of two workloads that this process is both of, it
 * prints one line per thing that works; as {@code watch ADDRESS BEFORE AFTER} it tells when a stream shows
 * the first id, and when the other one has come. It exits with 1 at the first thing that does not work.
 */
public final class Clients {
    private static final TrustDomain DOMAIN = TrustDomain.parse("example.org");
    private static final Duration PATIENCE = Duration.ofSeconds(30);

    private final String address;
    private final SpiffeId first;
    private final SpiffeId second;

    private Clients(String address, String first, String second) {
        this.address = address;
        this.first = SpiffeId.parse(first);
        this.second = SpiffeId.parse(second);
    }

    public static void main(String[] args) {
        try {
            if (args.length == 4 && args[0].equals("watch")) {
                new Clients(args[1], args[2], args[3]).watch();
            } else {
                new Clients(args[0], args[1], args[2]).all();
            }
        } catch (Throwable failed) {
            failed.printStackTrace();
            System.exit(1);
        }
        // Threads of open streams are no daemons.
        System.exit(0);
    }

    private void all() throws Exception {
        try (WorkloadApiClient api = api()) {
            x509Context(api);
            x509Bundles(api);
            jwtSvids(api);
            jwtValidation(api);
        }
        x509Source();
        jwtSource();
        mutualTls();
    }

    private void x509Context(WorkloadApiClient api) throws Exception {
        X509Context context = api.fetchX509Context();
        check(ids(context).equals(Set.of(first, second)), "ids are " + ids(context));
        for (X509Svid svid : context.getX509Svids()) {
            X509SvidValidator.verifyChain(svid.getChain(), context.getX509BundleSet());
            X509SvidValidator.verifySpiffeId(svid.getLeaf(), () -> Set.of(svid.getSpiffeId()));
        }
        done("x509 context");
    }

    private void x509Bundles(WorkloadApiClient api) throws Exception {
        X509Bundle bundle = api.fetchX509Bundles().getBundleForTrustDomain(DOMAIN);
        check(!bundle.getX509Authorities().isEmpty(), "no authorities");
        done("x509 bundles");
    }

    private void jwtSvids(WorkloadApiClient api) throws Exception {
        JwtSvid token = api.fetchJwtSvid(first, "one", "two");
        check(token.getSpiffeId().equals(first), "the token is of " + token.getSpiffeId());
        // Of several without a hint the library shows the first only.
        check(Set.of(first, second).contains(api.fetchJwtSvids("one").get(0).getSpiffeId()), "another's token");
        check(!api.fetchJwtBundles().getBundleForTrustDomain(DOMAIN).getJwtAuthorities().isEmpty(), "no keys");
        done("jwt svids and bundles");
    }

    private void jwtValidation(WorkloadApiClient api) throws Exception {
        String token = api.fetchJwtSvid(first, "one").getToken();
        check(api.validateJwtSvid(token, "one").getSpiffeId().equals(first), "validated as another");
        refused(() -> api.validateJwtSvid(token, "two"), "validated for another audience");
        done("jwt validation by the api");
    }

    private void x509Source() throws Exception {
        for (SpiffeId id : List.of(first, second)) {
            try (X509Source source = source(id)) {
                check(source.getX509Svid().getSpiffeId().equals(id), "the source holds another");
                X509SvidValidator.verifyChain(source.getX509Svid().getChain(), source);
            }
        }
        done("x509 source");
    }

    private void jwtSource() throws Exception {
        JwtSourceOptions options =
                JwtSourceOptions.builder().spiffeSocketPath(address).initTimeout(PATIENCE).build();
        try (JwtSource source = DefaultJwtSource.newSource(options)) {
            JwtSvid token = source.fetchJwtSvid(second, "one", "two");
            JwtSvid validated = JwtSvid.parseAndValidate(token.getToken(), source, Set.of("two"));
            check(validated.getSpiffeId().equals(second), "validated as " + validated.getSpiffeId());
            refused(() -> JwtSvid.parseAndValidate(token.getToken(), source, Set.of("three")),
                    "the token is good for any audience");
        }
        done("jwt source");
    }

    /** Both ends are this process, as one identity each; who is not let in gets nothing. */
    private void mutualTls() throws Exception {
        try (X509Source server = source(first); X509Source client = source(second)) {
            SSLServerSocket listener = (SSLServerSocket) tls(server, second)
                    .getServerSocketFactory().createServerSocket(0, 8, InetAddress.getLoopbackAddress());
            listener.setNeedClientAuth(true);
            Thread echo = new Thread(() -> echo(listener));
            echo.setDaemon(true);
            echo.start();

            check(hello(client, listener.getLocalPort()).equals(first), "the server is another");
            done("mutual tls");
            refused(() -> hello(server, listener.getLocalPort()), "the server talks to a stranger");
            done("stranger refused");
        }
    }

    private SpiffeId hello(X509Source as, int port) throws Exception {
        try (SSLSocket socket = (SSLSocket) tls(as, first)
                .getSocketFactory().createSocket(InetAddress.getLoopbackAddress(), port)) {
            socket.getOutputStream().write(42);
            check(socket.getInputStream().read() == 42, "no echo");
            X509Certificate leaf = (X509Certificate) socket.getSession().getPeerCertificates()[0];
            X509SvidValidator.verifySpiffeId(leaf, () -> Set.of(first));
            return first;
        }
    }

    private static void echo(SSLServerSocket listener) {
        while (true) {
            try (SSLSocket socket = (SSLSocket) listener.accept()) {
                socket.getOutputStream().write(socket.getInputStream().read());
            } catch (IOException refused) {
                // A stranger, whose side tells.
            }
        }
    }

    private static SSLContext tls(X509Source as, SpiffeId peer) throws Exception {
        return SpiffeSslContextFactory.getSslContext(SslContextOptions.builder()
                .x509Source(as).acceptedSpiffeIdsSupplier(() -> Set.of(peer)).build());
    }

    /** Tells of each certificate that an open source changes to, and ends when the second id is there too. */
    private void watch() throws Exception {
        CountDownLatch before = new CountDownLatch(1);
        CountDownLatch after = new CountDownLatch(1);
        CountDownLatch rotated = new CountDownLatch(1);
        AtomicReference<X509Svid> held = new AtomicReference<>();
        try (WorkloadApiClient api = api()) {
            api.watchX509Context(new Watcher<>() {
                @Override
                public void onUpdate(X509Context update) {
                    for (X509Svid svid : update.getX509Svids()) {
                        if (svid.getSpiffeId().equals(second)) {
                            after.countDown();
                        }
                        if (svid.getSpiffeId().equals(first)) {
                            X509Svid old = held.getAndSet(svid);
                            if (old != null && !old.getLeaf().equals(svid.getLeaf())
                                    && !old.getPrivateKey().equals(svid.getPrivateKey())) {
                                rotated.countDown();
                            }
                            before.countDown();
                        }
                    }
                }

                @Override
                public void onError(Throwable error) {
                    error.printStackTrace();
                }
            });
            await(before, "the first identity does not come");
            System.out.println("watching");
            await(after, "the second identity does not come");
            done("watch");
            await(rotated, "the first identity is not renewed");
            done("rotation");
        }
    }

    private static void await(CountDownLatch latch, String otherwise) throws InterruptedException {
        check(latch.await(90, TimeUnit.SECONDS), otherwise);
    }

    private WorkloadApiClient api() throws Exception {
        return DefaultWorkloadApiClient.newClient(
                DefaultWorkloadApiClient.ClientOptions.builder().spiffeSocketPath(address).build());
    }

    private X509Source source(SpiffeId id) throws Exception {
        return DefaultX509Source.newSource(DefaultX509Source.X509SourceOptions.builder()
                .spiffeSocketPath(address)
                .initTimeout(PATIENCE)
                .svidPicker(all -> all.stream().filter(svid -> svid.getSpiffeId().equals(id)).findFirst().get())
                .build());
    }

    private static Set<SpiffeId> ids(X509Context context) {
        Set<SpiffeId> ids = new HashSet<>();
        context.getX509Svids().forEach(svid -> ids.add(svid.getSpiffeId()));
        return ids;
    }

    private interface Attempt {
        void run() throws Exception;
    }

    private static void refused(Attempt attempt, String otherwise) {
        try {
            attempt.run();
        } catch (Exception refused) {
            return;
        }
        throw new AssertionError(otherwise);
    }

    private static void check(boolean holds, String otherwise) {
        if (!holds) {
            throw new AssertionError(otherwise);
        }
    }

    private static void done(String what) {
        System.out.println("ok: " + what);
    }
}
